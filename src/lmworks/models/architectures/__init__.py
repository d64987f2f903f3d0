"""Architectures of other projects: how their configs and tensor names read in our blocks.

In: the `config.json` of a Hugging Face folder, or the metadata of a GGUF file. Out: a
`ModelConfig`, and for each of our parameters the name that the other format gives it, both ways.
One file per architecture, one line in `base.ARCHITECTURES`; there is no class per model.
"""

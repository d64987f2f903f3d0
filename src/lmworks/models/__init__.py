"""The model family: models made of blocks that a config chooses, one forward for every use.

In: a `ModelConfig`, or a reference to weights (`load_model`): a Hugging Face folder or a GGUF.
Out: a `Model` (a torch module: `input_ids (B, T)` -> logits `(B, T, V)`), which training,
scoring, sampling and serving all call; `KVCache`, its memory between calls; `save_model`, a
folder that transformers, vLLM and the llama.cpp converter read.

A mixer, feed-forward or norm is one config, one file and one line in `base.BLOCKS`; an architecture
of another project is a config reader and a name map, one file in `architectures`.

Systems that live here: chapters 5 (Transformers) and 11 (Model architectures); see docs/systems.md.
"""

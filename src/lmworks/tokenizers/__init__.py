"""Text to token ids and back: byte-level BPE, its trainer, the formats of others, chat templates.

In: text or bytes, a `tokenizer.json`, a GGUF vocabulary. Out: ids, or a tokenizer folder that
transformers loads. One of the 88 systems is begun here: Custom BPE tokenizer (see
docs/systems.md).
"""

"""Text to token ids and back: byte-level BPE, its trainer, the formats of others, chat templates.

In: text or bytes, a `tokenizer.json`, a GGUF vocabulary. Out: ids, or a tokenizer folder that
transformers loads. Systems that live here: Custom BPE tokenizer; the rendering half of the Chat
template designer (see docs/systems.md).
"""

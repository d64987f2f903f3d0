"""Text to token ids and back: BPE, Unigram and WordPiece, their trainers, kernels and formats.

In: text or bytes; a `tokenizer.json`, a `.model`, ranks, a GGUF vocabulary. Out: ids with offsets,
or a tokenizer folder that transformers loads; budgets of chat requests; packed rows. Chapter 1 of
the 88 systems lives here, but for comparing (evaluation) and transplanting (models): see
docs/systems.md.
"""

"""Smaller models: quantised, sparse or pruned, on calibration text of one's own.

In: a model folder or GGUF. Out: a GGUF file that llama.cpp and our engine read, or safetensors in a
layout that vLLM and transformers read. docs/architecture.md has the way through the room.
"""

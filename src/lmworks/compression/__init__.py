"""Smaller models: quantised weights, and what they cost and save.

In: a model folder or GGUF. Out: a folder with one GGUF file that llama.cpp and our engine read.
Systems that live here: Quantization toolkit, Quality vs speed analyzer (both begun; see
docs/systems.md).
"""

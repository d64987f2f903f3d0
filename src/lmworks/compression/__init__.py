"""Smaller models: quantised weights, and what they cost and save.

In: a model folder or GGUF. Out: a folder with one GGUF file that llama.cpp and our engine read.
One of the 88 systems is begun here: Quantization toolkit (see docs/systems.md).
"""

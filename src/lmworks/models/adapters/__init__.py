"""Adapters: a few weights beside a frozen model, trained in its place.

In: a `Model`, its weights float32, packed GGUF blocks or NF4. Out: an `Adapter` on it, which can be
trained, switched off, folded into the weights, taken away, and kept as a folder in PEFT's format.

A method is one file and one line in `base.ADAPTERS`: LoRA, DoRA, (IA)3, prefix tuning, bottlenecks.

Systems that live here: chapter 9, Parameter-efficient fine-tuning; see docs/systems.md.
"""

"""The loop that changes weights: objectives, optimizers, schedules, checkpoints, and their stages.

In: a corpus or dataset, a tokenizer, a model (or the size of a new one). Out: a model folder.
One trainer serves every objective; an objective turns a batch into a loss. Systems that live
here: Mini-GPT, Mini-LLM pre-training, Instruction-following model (see docs/systems.md).
"""

"""The parity debugger: where two models part on the same tokens, and why.

In: two of: a reference to weights, `transformers:REF`, a model of ours, a module of transformers,
or a `Port` (any torch module with names for its parts). Out: a `Report`: every operation in the
order of computing with its difference, the first one that differs, and causes that were tested.

How a cause is tested: the layer in question is built from our own blocks with one thing changed
(a config field, a tensor, a piece of code), given the very input that the port's layer got, and
held against what the port's layer made of it. Nothing is concluded from the looks of a difference.

- `operations`: what is read of a module and under which name, for ours and for others
- `sides`: the two models behind one interface; `attention_calls` looks into transformers
- `differences`: how far two tensors are apart, and where most
- `facts`: what the configs and the weights themselves say, before anything runs
- `trial`: one layer, with one change; `changes`, `changes_of_*`: the changes that are tried
- `compare`: all of it together

Systems that live here: Transformer from scratch (the proof); see docs/systems.md.
"""

"""Several models in, one model out: merges of weights, tensor by tensor.

`base.py` is the seam: METHODS leads from a name to a `Method`, one small file each. `recipe.py`
reads mergekit's YAML, `sources.py` opens what goes in, `plan.py` says which tensors make which,
`execute.py` makes them one after the other, a band of rows at a time.
"""

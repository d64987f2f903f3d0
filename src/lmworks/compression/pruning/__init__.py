"""Pruning: a shorter or narrower model out of a trained one, as a student that distillation heals.

Layers go by how little they change the states (`depth`); channels of the states, heads and neurons
by how much they add to what reads them (`hidden`, `width`). Stage: `stage.prune`.
"""

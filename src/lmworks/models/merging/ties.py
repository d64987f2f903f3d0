"""TIES: keep the largest changes, elect a sign at each place, add up those that agree.

Source: Yadav et al. 2023, arXiv 2306.01708. See `task_vectors`.
"""

from __future__ import annotations

from lmworks.models.merging.task_vectors import keep_largest, task_vector_method

TIES = task_vector_method(thin=keep_largest, sign_consensus=True, normalize=True, rescale=False)

"""Task arithmetic: add up what models changed in their base. See `task_vectors`.

Source: Ilharco et al. 2023, arXiv 2212.04089.
"""

from __future__ import annotations

from lmworks.models.merging.task_vectors import task_vector_method

TASK_ARITHMETIC = task_vector_method(sign_consensus=False, normalize=False, rescale=False)

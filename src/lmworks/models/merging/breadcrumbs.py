"""Model breadcrumbs: drop the largest changes as outliers, and the smallest as noise.

A share `gamma` of largest magnitude goes (at most 1 - density), and as many of the smallest as
leave the share `density`. Source: Davari and Belilovsky 2023, arXiv 2312.06795.
"""

from __future__ import annotations

from lmworks.models.merging.base import Parameter
from lmworks.models.merging.masks import Mask
from lmworks.models.merging.parts import Parts
from lmworks.models.merging.task_vectors import largest_changes, task_vector_method


def _keep_middle(parts: Parts, index: int) -> Mask | None:
    values = parts.models[index].values
    density, gamma = values["density"], values["gamma"]
    if density >= 1:
        return None
    total = parts.numel
    wanted, dropped = int(density * total), int(gamma * total)
    dropped = min(dropped, total - wanted)
    kept = largest_changes(parts, index, wanted + dropped)
    return kept.without(largest_changes(parts, index, dropped))


_EACH = {"gamma": Parameter(each=True, default=0.01, low=0.0, high=1.0)}
BREADCRUMBS = task_vector_method(
    thin=_keep_middle, sign_consensus=False, normalize=False, rescale=False, each=_EACH
)
BREADCRUMBS_TIES = task_vector_method(
    thin=_keep_middle, sign_consensus=True, normalize=False, rescale=False, each=_EACH
)

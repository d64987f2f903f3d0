"""Merges of task vectors: what each model changed in a base, thinned, weighted, added up.

    result = base + lambda * sum_i weight_i * scale_i * mask_i * (model_i - base)

Task arithmetic masks nothing; TIES, DARE, DELLA and breadcrumbs differ in their masks. Those that
are called `_ties` (and `ties`, `della`) go by the sign that has the larger sum at each place, and
leave out the models of the other sign. `normalize` divides by the weights that were added up at
each place; `rescale` gives a thinned vector the sum of magnitudes that it had.

Sources: Ilharco et al. 2023, arXiv 2212.04089; Yadav et al. 2023, arXiv 2306.01708, section 3.2.
Types and order of sums are mergekit 0.1.5's, whose results these are to the bit. `int8_mask`, a
setting of theirs about memory, is read and changes nothing: masks take one bit here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from lmworks.models.merging.base import Band, Method, Parameter
from lmworks.models.merging.masks import Mask, largest
from lmworks.models.merging.parts import Parts

# (parts, index of the model) -> its mask over the whole tensor, or None for "all"
Thin = Callable[[Parts, int], "Mask | None"]

_NO_WEIGHT = 1e-8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thinned:
    """A model's mask and the factor that makes up for it."""

    mask: Mask | None
    scale: torch.Tensor | None


def _no_mask(parts: Parts, index: int) -> None:
    return None


def task_vector_method(
    *,
    thin: Thin = _no_mask,
    sign_consensus: bool,
    normalize: bool,
    rescale: bool,
    each: Mapping[str, Parameter] | None = None,
) -> Method:
    """A method of this family.

    Args:
        normalize, rescale: what these parameters are by default.
        each: parameters of each model beside weight and density.
    """

    def facts(parts: Parts) -> list[Thinned]:
        return [_thinned(parts, index, thin) for index in range(len(parts.models))]

    def combine(parts: Parts, band: Band, thinned: list[Thinned]) -> torch.Tensor:
        deltas = torch.stack([_applied(parts, i, band, one) for i, one in enumerate(thinned)])
        weights = torch.tensor(parts.values("weight"), dtype=deltas.dtype)
        mixed = add_up(
            deltas, weights, sign_consensus=sign_consensus, normalize=parts.shared["normalize"]
        )
        return parts.base_rows(band) + parts.shared["lambda"] * mixed

    return Method(
        combine=combine,
        facts=facts,
        base="required",
        parameters={
            "weight": Parameter(each=True),
            "density": Parameter(each=True, default=1.0, low=0.0, high=1.0),
            **(each or {}),
            "lambda": Parameter(default=1.0),
            "normalize": Parameter(kind=bool, default=normalize),
            "rescale": Parameter(kind=bool, default=rescale),
            "int8_mask": Parameter(kind=bool, default=False),
        },
    )


def _thinned(parts: Parts, index: int, thin: Thin) -> Thinned:
    mask = thin(parts, index)
    if mask is None or not parts.shared["rescale"]:
        return Thinned(mask=mask, scale=None)
    values = parts.delta(index).abs_()
    # float16 sums would overflow.
    summed = torch.float32 if parts.dtype == torch.float16 else None
    before = values.sum(dtype=summed)
    for first, last in parts.bands():
        rows = values[first:last] if parts.shape else values
        rows.mul_(mask.rows(first, last, rows.shape))
    after = values.sum(dtype=summed)
    return Thinned(mask=mask, scale=before / after if after > 0 else None)


def _applied(parts: Parts, index: int, band: Band, thinned: Thinned) -> torch.Tensor:
    delta = parts.delta(index, band)
    if thinned.mask is not None:
        delta *= thinned.mask.rows(*band, delta.shape)
    return delta if thinned.scale is None else delta * thinned.scale


def add_up(
    deltas: torch.Tensor, weights: torch.Tensor, *, sign_consensus: bool, normalize: bool
) -> torch.Tensor:
    """Weighted sum of `deltas` (models, ...), by sign if asked, over the weights if asked."""
    weights = weights.reshape(-1, *[1] * (deltas.ndim - 1))
    weighted = deltas * weights
    agreeing: torch.Tensor | None = None
    if sign_consensus:
        agreeing = agrees(weighted)
        weighted = weighted * agreeing
    mixed = weighted.sum(0)
    if not normalize:
        return mixed
    counted = weights.expand_as(deltas) if agreeing is None else weights * agreeing
    total = counted.sum(0)
    return mixed / torch.where(nothing(total), torch.ones_like(total), total)


def nothing(total: torch.Tensor) -> torch.Tensor:
    """Where a sum of weights is too small to divide by; float16 could not tell."""
    return total.float().abs() < _NO_WEIGHT


def agrees(vectors: torch.Tensor) -> torch.Tensor:
    """Where each of `vectors` (models, ...) has the sign of their sum; a sum of 0 counts as +."""
    elected = torch.where(vectors.sum(0) >= 0, 1, -1).to(vectors.dtype)
    return vectors.sign() == elected


def keep_largest(parts: Parts, index: int) -> Any:
    """`Thin` of TIES: the share `density` of largest magnitude."""
    density = parts.models[index].values["density"]
    if density >= 1:
        return None
    return largest_changes(parts, index, int(density * parts.numel))


def largest_changes(parts: Parts, index: int, count: int) -> Mask:
    """The `count` places that a model changed most."""

    def sizes() -> Iterator[torch.Tensor]:
        for band in parts.bands():
            yield parts.delta(index, band).abs_()

    return largest(sizes, parts.shape, parts.dtype, count)

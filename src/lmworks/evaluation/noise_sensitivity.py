"""What a little noise in one kind of matrix costs: how much KL a relative error there makes.

Matrices are not equally touchy: the same relative error in a down projection may cost ten times
what it does in a query's. Each kind in turn (all layers' q_proj, all down_proj, the embedding) gets
white noise of a known size, and the KL that this makes, over the noise, is its sensitivity. Sums of
these times the errors of a quantisation come near its KL without running it (Malinovskii et al.
2024, arXiv 2411.17525, section 4; theirs asks each layer and perplexity, ours each kind and KL).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmworks.core.progress import track

if TYPE_CHECKING:
    from lmworks.evaluation.divergence import Remembered
    from lmworks.models.model import Model

NOISE = 1e-3  # |dW|^2 / |W|^2: about what 5 bits do


def kind_of(name: str) -> str:
    """What layers share of a matrix's name: mixer.q_proj of `layers.3.mixer.q_proj.weight`."""
    return re.sub(r"(^|\.)(layers|experts)\.\d+\.", r"\1", name).removesuffix(".weight")


def sensitivities(
    model: Model, reference: Model | Remembered, rows: Sequence[np.ndarray], *, seed: int = 0
) -> dict[str, float]:
    """KL per relative squared error of each kind of matrix, in nats per token.

    Args:
        model: its weights in float32; they change meanwhile and are the same at the end.
        reference: the same model, or what was remembered of it on these rows.
    """
    import torch

    from lmworks.evaluation.divergence import divergences

    kinds: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            kinds.setdefault(kind_of(name), []).append(parameter.data)
    found = {}
    with track("sensitivity", total=len(kinds)) as bar:
        for number, (kind, weights) in enumerate(kinds.items()):
            generator = torch.Generator().manual_seed(seed + number)
            before = [weight.clone() for weight in weights]
            for weight in weights:
                noise = torch.randn(weight.shape, generator=generator)
                weight += noise * (NOISE * weight.square().mean()).sqrt()
            kl = divergences(reference, model, rows).mean_kl().estimate
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
            found[kind] = kl / NOISE
            bar.advance(1)
    return found


def weighed_error(errors: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The KL that errors of the kinds of matrices make, were each small: their weighed sum."""
    return sum(weights.get(kind, 0.0) * error for kind, error in errors.items())

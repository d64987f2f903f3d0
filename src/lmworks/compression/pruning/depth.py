"""Fewer layers: those go that change least what passes through them.

Two ways to see it. `influence` looks at each layer alone, `run` at a stretch of neighbours, which
can undo each other and be needless together although none of them is.

Source: Men et al. 2024 (ShortGPT), arXiv 2403.03853, eq. 1 (block influence); Gromov et al. 2024,
    arXiv 2403.17887, section 3.2 (a run of layers by the angle between its two ends; here the last
    layer may be in it).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from lmworks.compression.layer_inputs import LayerWalk
from lmworks.models.skeleton import skeleton

if TYPE_CHECKING:
    from lmworks.models.model import Model


def influences(model: Model, rows: Sequence[np.ndarray], *, span: int = 1) -> np.ndarray:
    """How far `span` layers turn the states: 1 - cosine of what goes in and what comes out.

    Args:
        rows: (T,) token ids each.
        span: layers in a row that are looked at as one.
    Returns: (layers - span + 1,) float64, means over tokens, by the first layer of the run.
    """
    walk = LayerWalk(model, rows)
    seen = [walk.states()]
    found = []
    for index in range(len(model.layers)):
        walk.advance(index)
        seen.append(walk.states())
        if len(seen) > span:
            pairs = zip(seen.pop(0), seen[-1], strict=True)
            apart = torch.cat([1 - F.cosine_similarity(a, b, dim=-1) for a, b in pairs])
            found.append(float(apart.double().mean()))
    return np.array(found)


def layers_to_keep(model: Model, rows: Sequence[np.ndarray], count: int, way: str) -> list[int]:
    """Which `count` layers stay, in their order.

    Args:
        way: "influence" takes the least layers one by one, "run" the least stretch of neighbours.
    """
    total = len(model.layers)
    going = total - count
    if not going:
        return list(range(total))
    if way == "run":
        first = int(influences(model, rows, span=going).argmin())
        return [i for i in range(total) if not first <= i < first + going]
    least = np.argsort(influences(model, rows), kind="stable")[:going]
    return sorted(set(range(total)) - set(least.tolist()))


def with_layers(model: Model, kept: Sequence[int]) -> Model:
    """A model of these layers alone; it shares their memory."""
    layers = tuple(model.config.layers[i] for i in kept)
    made = skeleton(dataclasses.replace(model.config, layers=layers))
    places = {f"layers.{old}.": f"layers.{new}." for new, old in enumerate(kept)}
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("layers."):
            prefix = ".".join(name.split(".", 2)[:2]) + "."
            if prefix not in places:
                continue
            name = places[prefix] + name.removeprefix(prefix)
        state[name] = tensor
    made.load_state_dict(state, assign=True)
    return made.eval()

"""How large the inputs of each matrix are on a text: what llama.cpp calls an importance matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmworks.compression.layer_inputs import LayerWalk, linear_paths
from lmworks.compression.layer_source import AFTER, BEFORE, LayerSource
from lmworks.core.progress import track


def measure_importance(source: LayerSource, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """By the name of a GGUF tensor: the mean squares of its inputs, (n,) float32.

    The layers are those of the float model, as llama.cpp's tool has it. The head is there where it
    has a matrix of its own; experts that lie in one tensor are not.
    """
    found: dict[str, np.ndarray] = {}
    model = source.model
    source.load(BEFORE)
    walk = LayerWalk(model, rows)
    source.drop(BEFORE)
    with track("looking at inputs", total=len(model.layers)) as bar:
        for index, layer in enumerate(model.layers):
            source.load(index)
            paths = linear_paths(layer, f"layers.{index}")
            inputs = walk.inputs(index, paths, moments=False)
            for bound in source.bounds(index):
                known = inputs.get(bound.own[0].rpartition(".")[0])
                if known is not None and bound.own[0].endswith(".weight"):
                    found |= dict.fromkeys(bound.foreign, known.mean_square)
            walk.advance(index)
            source.drop(index)
            bar.advance()
    source.load(AFTER)
    for bound in source.bounds(AFTER):
        if bound.own[0] == "lm_head.weight":
            found[bound.foreign[0]] = walk.final(moments=False).mean_square
    source.drop(AFTER)
    return found

"""A narrower model: channels of the states go from all layers at once.

A channel is worth what it adds to the outputs of all matrices that read it, each matrix counting
the same. What is left of a state has another root mean square than the whole; the norms' scales
take that up, measured on the calibration text.

Source: Muralidharan et al. 2024 (Minitron), arXiv 2407.14679, section 2.2, sums the normed states
    themselves; here they are weighed by the matrices that read them, and norms are put right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lmworks.compression.layer_inputs import LayerWalk
from lmworks.compression.pruning.contribution import channel_contributions, largest
from lmworks.core.errors import UserError
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig, RMSNormConfig
from lmworks.models.skeleton import skeleton

if TYPE_CHECKING:
    from lmworks.models.model import Model

_READERS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_NORMS = ("mixer_norm", "feed_forward_norm")


def check_blocks(config: ModelConfig) -> None:
    """Raises: UserError naming what is no attention or dense feed-forward before its norm."""
    for index, layer in enumerate(config.layers):
        for block in (layer.mixer, layer.feed_forward):
            if not isinstance(block, AttentionConfig | MLPConfig):
                kind = "without a feed-forward" if block is None else f"of kind {block.kind}"
                raise UserError(
                    f"layer {index} is {kind}: only attention and dense feed-forwards are made "
                    "narrower; --layers can still leave layers out"
                )
        if layer.placement not in ("pre", "sandwich"):
            raise UserError(f"layer {index}: norms stand {layer.placement}; only pre and sandwich")
    if config.embedding.size is not None or config.positions is not None:
        raise UserError("the table of tokens is projected, or positions are added to it: not cut")


def with_hidden_size(model: Model, rows: Sequence[np.ndarray], size: int) -> Model:
    """A model of the `size` channels of the states that its matrices need most.

    Args:
        rows: (T,) token ids each.
    Raises: UserError for a size or blocks that can't be cut.
    """
    hidden = model.config.hidden_size
    check_blocks(model.config)
    if not 1 <= size <= hidden:
        raise UserError(f"hidden_size = {size}: from 1 to the model's {hidden}")
    if size == hidden:
        return model
    squares, scores = _measured(model, rows)
    kept = largest(scores, size)
    made = skeleton(dataclasses.replace(model.config, hidden_size=size))
    shapes = {name: tensor.shape for name, tensor in made.state_dict().items()}
    state = {}
    for name, tensor in model.state_dict().items():
        for axis, (before, after) in enumerate(zip(tensor.shape, shapes[name], strict=True)):
            if before != after:
                tensor = tensor.index_select(axis, kept)
        state[name] = tensor
    for name, square in squares.items():
        config = model.config.norm if name == "norm" else model.config.layers[0].norm
        if isinstance(config, RMSNormConfig):
            factor = float(torch.sqrt(square[kept].mean() / square.mean().clamp(min=1e-20)))
            offset = 1.0 if config.unit_offset else 0.0
            weight = state[f"{name}.weight"]
            state[f"{name}.weight"] = (weight + offset) * factor - offset
    made.load_state_dict(state, assign=True)
    return made.eval()


def _measured(
    model: Model, rows: Sequence[np.ndarray]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Mean squares (H,) of what each norm is given, by path; and the channels' worth (H,)."""
    walk = LayerWalk(model, rows)
    head: Any = model.embed_tokens if model.lm_head is None else model.lm_head
    squares: dict[str, torch.Tensor] = {}
    scores = torch.zeros(model.config.hidden_size)
    for index, layer in enumerate(model.layers):
        prefix = f"layers.{index}"
        names = dict(layer.named_modules())
        norms = [f"{prefix}.{name}" for name in _NORMS if name in names]
        readers = [f"{prefix}.{name}" for name in names if name.rpartition(".")[2] in _READERS]
        seen = walk.inputs(index, [*norms, *readers], moments=False)
        squares |= {path: torch.from_numpy(seen[path].mean_square) for path in norms}
        for path in readers:
            reader: Any = model.get_submodule(path)
            scores += _shares(reader.weight.detach(), torch.from_numpy(seen[path].mean_square))
        walk.advance(index)
    states = torch.cat(walk.states())
    if model.norm is not None:
        squares["norm"] = states.square().mean(dim=0)
    given = torch.from_numpy(walk.final(moments=False).mean_square)
    return squares, scores + _shares(head.weight.detach(), given)


def _shares(weight: torch.Tensor, mean_square: torch.Tensor) -> torch.Tensor:
    parts = channel_contributions(weight, mean_square)
    return parts / parts.sum().clamp(min=1e-20)

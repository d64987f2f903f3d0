"""Fewer heads and neurons: each layer keeps those that add most to its outputs.

Layers are cut in order, each on the states that the cut ones before it give, its feed-forward on
what its own cut attention gives. The matrices behind what went (`o_proj`, `down_proj`) are fitted
anew, so that what stays says most of what is missing. All layers get the same sizes, as files of
this architecture want it; which heads and neurons stay is each layer's own.

Source: Muralidharan et al. 2024 (Minitron), arXiv 2407.14679, section 2.2. Differs: scores and
    fit, see `contribution`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lmworks.compression.layer_inputs import LayerInputs, LayerWalk
from lmworks.compression.pruning.contribution import (
    channel_contributions,
    group_contributions,
    largest,
    refitted,
)
from lmworks.compression.pruning.hidden import check_blocks
from lmworks.core.errors import UserError
from lmworks.core.progress import track
from lmworks.models.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig
from lmworks.models.layer import Layer
from lmworks.models.skeleton import skeleton

if TYPE_CHECKING:
    from lmworks.models.model import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Widths:
    """Sizes of every layer; 0 leaves one as it is."""

    num_attention_heads: int = 0
    num_key_value_heads: int = 0
    intermediate_size: int = 0


def with_widths(model: Model, rows: Sequence[np.ndarray], widths: Widths) -> Model:
    """A model of these sizes; the one that is given stays as it is.

    Args:
        rows: (T,) token ids each.
    Raises: UserError for sizes or blocks that can't be cut.
    """
    check_blocks(model.config)
    config = _config(model.config, widths)
    made = skeleton(config)
    # The cut layers stand in a model of their own, through which the states walk.
    state = {n: t for n, t in model.state_dict().items() if not n.startswith("layers.")}
    made.load_state_dict(state, strict=False, assign=True)
    made.layers = torch.nn.ModuleList(model.layers)
    made.eval()
    walk = LayerWalk(made, rows)
    with track("cutting layers", total=len(config.layers)) as bar:
        for index, wanted in enumerate(config.layers):
            between = dataclasses.replace(model.config.layers[index], mixer=wanted.mixer)
            for step, cut, behind in (
                (between, _cut_heads, "mixer.o_proj"),
                (wanted, _cut_neurons, "feed_forward.down_proj"),
            ):
                layer: Any = made.layers[index]
                before = {name: tensor.detach() for name, tensor in layer.state_dict().items()}
                inputs = functools.partial(_inputs, walk, index, f"layers.{index}.{behind}")
                made.layers[index] = _layer(step, config, cut(before, step, inputs))
            walk.advance(index)
            bar.advance()
    return made


def _inputs(walk: LayerWalk, index: int, path: str) -> LayerInputs:
    return walk.inputs(index, [path])[path]


def _layer(layer: LayerConfig, config: ModelConfig, state: dict[str, torch.Tensor]) -> Layer:
    with torch.device("meta"):
        made = Layer(layer, config)
    made.load_state_dict(state, assign=True)
    return made.eval()


def _config(config: ModelConfig, widths: Widths) -> ModelConfig:
    def changed(layer: LayerConfig) -> LayerConfig:
        mixer, dense = layer.mixer, layer.feed_forward
        assert isinstance(mixer, AttentionConfig) and isinstance(dense, MLPConfig)
        keys = widths.num_key_value_heads or mixer.num_key_value_heads
        # Each key-value head keeps as many queries as it had, unless told otherwise.
        group = mixer.num_attention_heads // mixer.num_key_value_heads
        queries = widths.num_attention_heads or keys * group
        _check("num_key_value_heads", keys, mixer.num_key_value_heads)
        _check("num_attention_heads", queries, keys * group)
        if queries % keys:
            raise UserError(
                f"num_attention_heads = {queries}: not a multiple of the {keys} key-value heads"
            )
        if mixer.qk_norm is not None and mixer.qk_norm_over == "all":
            raise UserError("heads are normed all together: they can't be cut one by one")
        inner = widths.intermediate_size or dense.intermediate_size
        _check("intermediate_size", inner, dense.intermediate_size)
        return dataclasses.replace(
            layer,
            mixer=dataclasses.replace(mixer, num_attention_heads=queries, num_key_value_heads=keys),
            feed_forward=dataclasses.replace(dense, intermediate_size=inner),
        )

    return dataclasses.replace(config, layers=tuple(changed(layer) for layer in config.layers))


def _check(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise UserError(f"{name} = {value}: from 1 to {most}")


def _cut_heads(state: dict[str, torch.Tensor], layer: LayerConfig, inputs: Any) -> Any:
    mixer = layer.mixer
    assert isinstance(mixer, AttentionConfig)
    size = mixer.head_dim
    weight = state["mixer.o_proj.weight"]
    keys_before = state["mixer.k_proj.weight"].shape[0] // size
    group = weight.shape[1] // size // keys_before
    keys, queries = mixer.num_key_value_heads, mixer.num_attention_heads
    if (keys, queries) == (keys_before, keys_before * group):
        return state
    seen: LayerInputs = inputs()
    assert seen.moment is not None
    moment = torch.from_numpy(seen.moment)
    scores = group_contributions(weight, moment, size).view(keys_before, group)
    kept_keys = largest(scores.sum(dim=1), keys)
    each = queries // keys
    kept = torch.cat([key * group + largest(scores[key], each) for key in kept_keys.tolist()])
    cut = dict(state)
    for name, heads in (("q", kept), ("k", kept_keys), ("v", kept_keys)):
        places = _places(heads, size)
        for kind in ("weight", "bias"):
            if (path := f"mixer.{name}_proj.{kind}") in state:
                cut[path] = state[path][places]
    cut["mixer.o_proj.weight"] = refitted(weight, moment, _places(kept, size))
    return cut


def _cut_neurons(state: dict[str, torch.Tensor], layer: LayerConfig, inputs: Any) -> Any:
    dense = layer.feed_forward
    assert isinstance(dense, MLPConfig)
    weight = state["feed_forward.down_proj.weight"]
    if weight.shape[1] == dense.intermediate_size:
        return state
    seen: LayerInputs = inputs()
    assert seen.moment is not None
    scores = channel_contributions(weight, torch.from_numpy(seen.mean_square))
    kept = largest(scores, dense.intermediate_size)
    cut = dict(state)
    for name in ("gate_proj", "up_proj"):
        for kind in ("weight", "bias"):
            if (path := f"feed_forward.{name}.{kind}") in state:
                cut[path] = state[path][kept]
    cut["feed_forward.down_proj.weight"] = refitted(weight, torch.from_numpy(seen.moment), kept)
    return cut


def _places(heads: torch.Tensor, size: int) -> torch.Tensor:
    """Rows of these heads in a projection."""
    return (heads[:, None] * size + torch.arange(size)).flatten()

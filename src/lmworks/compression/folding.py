"""Channel scales that move from one matrix into another and leave what the model computes as it is.

A channel between two layers can be divided by s where it is made and multiplied by s where it is
read. That changes what a quantiser sees: channels that matter get finer steps (AWQ), channels of
activations that are far larger than the others get smaller (SmoothQuant). Three pairs allow it:

- a norm, and the linear modules that read it: the norm's weight (and bias) is divided;
- values, and the output projection of attention: a sum of values that is weighted by scores is
  linear in them; query heads that share a value head share its scale;
- the up projection of a feed-forward, and the down projection: gate and activation stand on the
  other factor. Without a gate relu(x / s) = relu(x) / s, and relu^2 takes the root of s.

Whether a pair is exact is told from the config; what isn't is named with the reason. Exact is up
to the rounding of float32, or to the bit where all scales are powers of two.

Sources: Xiao et al. 2022, SmoothQuant, arXiv 2211.10438, section 4; Lin et al. 2023, AWQ, arXiv
2306.00978, section 3.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lmworks.core.errors import UserError
from lmworks.models.config import AttentionConfig, LMHeadConfig, MLPConfig
from lmworks.models.norms import LayerNorm, RMSNorm

if TYPE_CHECKING:
    from lmworks.models.config import BlockConfig, LayerConfig
    from lmworks.models.model import Model

# The linear modules of a block that read what it is given, by the kind of its config; each is there
# or not as the config says. A block that is not here does more with its input.
_READERS = {
    "attention": ("q_proj", "k_proj", "v_proj"),
    "latent_attention": ("q_proj", "q_a_proj", "kv_a_proj"),
    "gated_linear_attention": ("q_proj", "k_proj", "v_proj", "decay_down_proj", "gate_proj"),
    "mamba": ("in_proj",),
    "mamba2": ("in_proj",),
    "short_convolution": ("in_proj",),
    "mlp": ("gate_proj", "up_proj"),
}
_POWERS = {"relu": 1.0, "relu_squared": 0.5}  # of s, that the giver of an ungated MLP is divided by
_PLACEMENTS = {
    "post": "the residual reads the norm as well",
    "output": "blocks read the residual, which no norm stands before",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fold:
    """A pair that a scale can move through.

    Attributes:
        giver: path of the norm or linear module whose output channels are divided.
        takers: paths of the linear modules that read them.
        size: channels of the giver, which is what a scale has.
        columns: (n,) int64: the channel of each input column of the takers; None where they are
            the same.
        power: of the scale, for the giver.
    """

    giver: str
    takers: tuple[str, ...]
    size: int
    columns: np.ndarray | None = None
    power: float = 1.0

    def spread(self, scale: np.ndarray) -> np.ndarray:
        """(size,) -> the factor of each input column of the takers."""
        return scale if self.columns is None else scale[self.columns]

    def gathered(self, values: np.ndarray) -> np.ndarray:
        """Largest value of each channel, of one for each input column of the takers."""
        if self.columns is None:
            return values
        largest = np.full(self.size, -np.inf, dtype=values.dtype)
        np.maximum.at(largest, self.columns, values)
        return largest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folds:
    """All pairs of a model, in the order of its layers.

    Attributes:
        refused: by the path of what a scale would have to leave: why it can't.
    """

    pairs: tuple[Fold, ...]
    refused: dict[str, str]

    def of_layer(self, index: int) -> tuple[Fold, ...]:
        """The pairs inside layer `index` of the decoder."""
        return tuple(p for p in self.pairs if p.giver.startswith(f"layers.{index}."))


def find_folds(model: Model) -> Folds:
    """The pairs of a model, and what was refused. Nothing is changed."""
    pairs: list[Fold] = []
    refused: dict[str, str] = {}
    for prefix, part in (("encoder.", model.encoder), ("", model)):
        if part is not None:
            for found in _of_layers(part, prefix):
                _take(model, found, pairs, refused)
    for found in _of_head(model):
        _take(model, found, pairs, refused)
    return Folds(pairs=tuple(pairs), refused=refused)


def apply_fold(model: Model, fold: Fold, scale: np.ndarray) -> None:
    """Divide the giver's channels by `scale` and multiply the takers' columns by it, in place.

    Args:
        scale: (size,), finite and above 0.
    Raises: ValueError for another shape, or a scale that is not above 0.
    """
    scale = np.asarray(scale, dtype=np.float32)
    if scale.shape != (fold.size,) or not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError(f"{fold.giver}: a scale is ({fold.size},) finite numbers above 0")
    giver: Any = model.get_submodule(fold.giver)
    divisor = torch.from_numpy(scale**fold.power)
    with torch.no_grad():
        if isinstance(giver, RMSNorm) and giver.unit_offset:
            giver.weight.add_(1).div_(divisor).sub_(1)
        else:
            giver.weight.div_(divisor.view(-1, *(1,) * (giver.weight.dim() - 1)))
        if getattr(giver, "bias", None) is not None:
            giver.bias.div_(divisor)
        for path in fold.takers:
            taker: Any = model.get_submodule(path)
            taker.weight.mul_(torch.from_numpy(fold.spread(scale)))


def require_folds(folds: Folds) -> tuple[Fold, ...]:
    """The pairs. Raises: UserError with the reasons if there is none."""
    if not folds.pairs:
        told = "; ".join(f"{path}: {why}" for path, why in list(folds.refused.items())[:4])
        raise UserError(f"no channel of this model can be rescaled ({told}): choose another method")
    return folds.pairs


def _take(model: Model, found: Fold | tuple[str, str], pairs: list[Fold], refused: Any) -> None:
    """A pair into `pairs` if its modules are plain; else, or if refused already, into `refused`."""
    if not isinstance(found, Fold):
        refused[found[0]] = found[1]
        return
    for path in (found.giver, *found.takers):
        module = model.get_submodule(path)
        if type(module) not in (nn.Linear, RMSNorm, LayerNorm):
            refused[found.giver] = f"{path} holds no float weights (load the model unpacked)"
            return
    pairs.append(found)


def _of_layers(part: Model, prefix: str) -> Iterator[Fold | tuple[str, str]]:
    for index, config in enumerate(part.config.layers):
        layer: Any = part.layers[index]
        path = f"{prefix}layers.{index}."
        yield from _of_norms(layer, config, path)
        for name in ("mixer", "cross_attention"):
            block = getattr(config, name)
            if isinstance(block, AttentionConfig):
                yield _of_values(layer, name, block, path)
        if config.mixer.kind == "latent_attention":
            yield from _of_latents(layer.mixer, f"{path}mixer.")
        if config.feed_forward is not None:
            yield _of_up(config.feed_forward, f"{path}feed_forward.")


def _of_norms(layer: Any, config: LayerConfig, path: str) -> Iterator[Fold | tuple[str, str]]:
    """The norms before the blocks of a layer."""
    if why := _PLACEMENTS.get(config.placement):
        yield f"{path}mixer_norm", f"placement {config.placement}: {why}"
        return
    shared = config.placement == "parallel_shared"
    takers: list[str] = []
    for name in layer.parts:
        block: BlockConfig = getattr(config, name)
        norm = "mixer_norm" if shared else f"{name}_norm"
        readers = _readers(block, getattr(layer, name), cross=name == "cross_attention")
        if isinstance(readers, str):
            yield f"{path}{norm}", readers
            if shared:
                return
            continue
        takers += [f"{path}{name}.{reader}" for reader in readers]
        if not shared or name == layer.parts[-1]:
            size = getattr(layer, norm).weight.shape[0]
            yield Fold(giver=f"{path}{norm}", takers=tuple(takers), size=size)
            takers = []


def _readers(block: BlockConfig, module: Any, *, cross: bool) -> list[str] | str:
    """Names of the linear modules of `module` that read its input, or why they can't be told."""
    if block.kind not in _READERS:
        return f"{block.kind} does more with its input than multiply it with matrices"
    if getattr(getattr(block, "pattern", None), "projections", False):
        return "attention with the pattern longformer has projections of its own"
    names = ("q_proj",) if cross else _READERS[block.kind]
    return [name for name in names if getattr(module, name, None) is not None]


def _of_values(layer: Any, name: str, block: AttentionConfig, path: str) -> Fold | tuple[str, str]:
    giver = f"{path}{name}.v_proj"
    if block.kind != "attention" or getattr(block.pattern, "projections", False):
        return giver, "values of more than one projection are mixed"
    if getattr(layer, name).prefix is not None:
        return giver, "an adapter puts values of its own before these"
    heads, shared, size = block.num_attention_heads, block.num_key_value_heads, block.head_dim
    of_head = np.arange(heads * size).reshape(heads, size) % size
    value_head = np.arange(heads) // (heads // shared)
    return Fold(
        giver=giver, takers=(f"{path}{name}.o_proj",), size=shared * size,
        columns=None if heads == shared else (value_head[:, None] * size + of_head).reshape(-1),
    )  # fmt: skip


def _of_latents(mixer: Any, path: str) -> Iterator[Fold]:
    for name in ("q", "kv"):
        norm = getattr(mixer, f"{name}_a_norm")
        if norm is not None:
            taker = f"{path}{name}_b_proj"
            yield Fold(giver=f"{path}{name}_a_norm", takers=(taker,), size=norm.weight.shape[0])


def _of_up(block: BlockConfig, path: str) -> Fold | tuple[str, str]:
    giver = f"{path}up_proj"
    if not isinstance(block, MLPConfig):
        return giver, f"{block.kind} has no single up and down projection"
    power = 1.0 if block.gated else _POWERS.get(block.activation)
    if power is None:
        return giver, f"{block.activation} without a gate does not keep a factor"
    size = block.intermediate_size
    return Fold(giver=giver, takers=(f"{path}down_proj",), size=size, power=power)


def _of_head(model: Model) -> Iterator[Fold | tuple[str, str]]:
    config = model.config
    if model.norm is None or not isinstance(config.head, LMHeadConfig):
        return
    if model.lm_head is None:
        yield "norm", "the head is the table of embeddings, which the layers read as well"
    elif config.head.transform is not None:
        yield "norm", "the head has a layer of its own before the vocabulary"
    else:
        yield Fold(giver="norm", takers=("lm_head",), size=config.hidden_size)

"""What a model costs, counted from its config: parameters, products per token, memory per token.

Counted are products of matrices and the sums over positions or states; norms, activations and
look-ups are left out, as is usual (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). One
multiply-add is two operations.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmworks.models.config import BlockConfig, ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """Attributes:
    num_parameters: all of them, a tied head once.
    active_parameters: those that a token meets (of experts, the chosen).
    forward_flops: operations per token of a forward over a full context.
    cache_bytes_per_token: float32, for layers that look back over everything.
    state_bytes: per sequence, whatever its length: recurrent states and windows.
    """

    num_parameters: int
    active_parameters: int
    forward_flops: float
    cache_bytes_per_token: int
    state_bytes: int

    @property
    def training_flops(self) -> float:
        """Per token: a backward is two forwards."""
        return 3 * self.forward_flops


@functools.lru_cache(maxsize=256)
def compute(config: ModelConfig, context_length: int = 0) -> Compute:
    """Count for sequences of `context_length` tokens; 0 takes the model's context."""
    from lmworks.models.skeleton import skeleton

    length = context_length or config.max_position_embeddings
    model = skeleton(config)
    parameters = sum(p.numel() for p in model.parameters())
    matrices = sum(p.numel() for p in model.layers.parameters() if p.dim() > 1)
    head = config.vocab_size * config.hidden_size if config.head else 0
    idle = sum(part.idle_parameters(config) for part in _parts(config))
    sums = sum(part.sequence_flops(config, length) for part in _parts(config))
    growing, fixed = _kept(config)
    return Compute(
        num_parameters=parameters,
        active_parameters=parameters - idle,
        forward_flops=2.0 * (matrices - idle + head) + sums,
        cache_bytes_per_token=growing,
        state_bytes=fixed,
    )


def _parts(config: ModelConfig) -> list[BlockConfig]:
    return [
        part
        for layer in config.layers
        for part in (layer.mixer, layer.cross_attention, layer.feed_forward)
        if part is not None
    ]


def _kept(config: ModelConfig) -> tuple[int, int]:
    growing = fixed = 0
    for layer in config.layers:
        kept = layer.kept(config)
        size = 4 * sum(heads * width for heads, width in kept.per_position.values())
        if kept.window is None:
            growing += size
        else:
            fixed += size * kept.window
        fixed += 4 * sum(math.prod(shape) for shape in kept.fixed.values())
    return growing, fixed

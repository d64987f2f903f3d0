"""Rotary positions: each pair of a head's dimensions turned by an angle that grows with position.

Pairs are (i, i + D/2), the layout of Hugging Face checkpoints; GGUF files interleave them and are
put in this order when they are read. Sines and cosines are computed once per (config, head size),
shared by all layers and grown when a longer sequence comes, so a long `max_position_embeddings`
costs nothing until it is used.

Source: Su et al. 2021, arXiv 2104.09864.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from lmworks.models.config import LinearScaling, Llama3Scaling, RoPEConfig

_FIRST_LENGTH = 256


def inverse_frequencies(rope: RoPEConfig, head_dim: int) -> torch.Tensor:
    """The angle per position of each pair, (head_dim / 2,) float32, radians."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if isinstance(rope.scaling, LinearScaling):
        return frequencies / rope.scaling.factor
    if isinstance(rope.scaling, Llama3Scaling):
        return frequencies / llama3_factors(rope.scaling, frequencies)
    return frequencies


def llama3_factors(scaling: Llama3Scaling, frequencies: torch.Tensor) -> torch.Tensor:
    """What each unscaled frequency is divided by, same shape: from 1 (high) to `factor` (low)."""
    waves_in_context = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((waves_in_context - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
    return 1.0 / ((1.0 - kept) / scaling.factor + kept)


class Rotary:
    """Cosines and signed sines, (positions, head_dim), for `apply_rotary`."""

    def __init__(self, rope: RoPEConfig, head_dim: int) -> None:
        self._rope, self._head_dim = rope, head_dim
        self._tables: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def tables(self, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines of at least `length` positions, on `device`."""
        tables = self._tables.get(device)
        if tables is None or len(tables[0]) < length:
            rows = max(_FIRST_LENGTH, 1 << (length - 1).bit_length())
            tables = self._tables[device] = self._compute(rows, device)
        return tables

    def _compute(self, rows: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        # Always on the CPU and outside autograd: the same table whoever asks first.
        with torch.device("cpu"), torch.inference_mode(False), torch.no_grad():
            frequencies = inverse_frequencies(self._rope, self._head_dim)
            angles = torch.outer(torch.arange(rows).float(), frequencies)
            cos, sin = angles.cos(), angles.sin()
            cosines, sines = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        return cosines.to(device), sines.to(device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rotary:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_rotary, (self._rope, self._head_dim)


@functools.cache
def shared_rotary(rope: RoPEConfig, head_dim: int) -> Rotary:
    """The one `Rotary` of this process for a config and head size."""
    return Rotary(rope, head_dim)


class _Rotate(torch.autograd.Function):
    """The rotation with few passes over memory; its gradient is the rotation back."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(cos, signed_sin)
        return _rotate(x, cos, signed_sin)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, signed_sin = ctx.saved_tensors
        return _Rotate.apply(gradients[0], cos, -signed_sin), None, None


def _rotate(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], signed_sin[..., :half])
    out[..., half:].addcmul_(x[..., :half], signed_sin[..., half:])
    return out


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """Turn x (..., D) by its positions' angles; cos and signed_sin broadcast against it."""
    rotated: torch.Tensor = _Rotate.apply(x, cos, signed_sin)
    return rotated

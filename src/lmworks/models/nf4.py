"""NF4: a frozen matrix in 4-bit NormalFloat, with the scales of its blocks quantised again.

A weight is one of 16 values, the quantiles of a normal distribution, times the largest magnitude of
its block of 64. Those magnitudes, less their mean, are 8-bit numbers of a dynamic type in blocks of
256. Together that is 4.13 bits per weight. Values and rounding are those of bitsandbytes, to the
bit (`bnb_4bit_quant_type="nf4"`, double quantisation on); blocks run along the rows of the
flattened matrix, as there.

To compute, rows are dequantised a slice at a time into one buffer, which stays in the processor's
cache until the matrix product has read it; the matrix never stands in memory whole. There is a
gradient for the activations and none for the matrix.

Source: Dettmers et al. 2023 (QLoRA), arXiv 2305.14314, section 3; the dynamic type: Dettmers 2016,
arXiv 1511.04561.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lmworks.core import compiled
from lmworks.core.errors import UserError
from lmworks.models import nf4_kernels_slots as slots
from lmworks.models.kernel_calls import run, work_space

BLOCK = 64
SCALE_BLOCK = 256
# Quantiles of N(0, 1) between which the same mass lies, with an exact 0, scaled to -1 ... 1.
CODE = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_SLICE_WEIGHTS = 1 << 20  # dequantised at a time, 4 MB
_LEAST_SCALE = 1e-38  # of a block of zeros


class NF4Matrix(nn.Module):
    """(rows, columns) as 4-bit codes."""

    codes: torch.Tensor  # uint8, two to the byte, the first in the high half
    scale_codes: torch.Tensor  # uint8, one for each block
    scale_scales: torch.Tensor  # float32, one for each 256 blocks
    scale_mean: torch.Tensor  # (), float32

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        if weight.dim() != 2:
            raise UserError(f"NF4 takes matrices, not a tensor of shape {tuple(weight.shape)}")
        self.shape = (weight.shape[0], weight.shape[1])
        codes, scales = quantize(weight.detach().reshape(-1).float())
        mean = scales.mean()
        scale_codes, scale_scales = _quantize_scales(scales - mean)
        for name, value in (
            ("codes", codes),
            ("scale_codes", scale_codes),
            ("scale_scales", scale_scales),
            ("scale_mean", mean),
        ):
            self.register_buffer(name, value, persistent=False)  # a checkpoint needs no base

    @property
    def num_bytes(self) -> int:
        """Memory that the matrix holds."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def scales(self) -> torch.Tensor:
        """The magnitude of each block, (blocks,) float32."""
        values = _dynamic_code().to(self.codes.device)[self.scale_codes.long()]
        blocks = torch.arange(len(values), device=values.device) // SCALE_BLOCK
        return values * self.scale_scales[blocks] + self.scale_mean

    def dequantized(self) -> torch.Tensor:
        """float32 values of all rows, (rows, columns)."""
        return torch.cat([weights.clone() for _, weights in self._slices()])

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, columns) -> (N, rows)."""
        out = x.new_empty(len(x), self.shape[0])
        for rows, weights in self._slices():
            out[:, rows] = x @ weights.T.to(x.dtype)
        return out

    def gradient(self, upstream: torch.Tensor) -> torch.Tensor:
        """Of x, given that of the product: (N, rows) -> (N, columns)."""
        total = upstream.new_zeros(len(upstream), self.shape[1])
        for rows, weights in self._slices():
            total.addmm_(upstream[:, rows], weights.to(upstream.dtype))
        return total

    def _slices(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """The dequantised matrix, some rows at a time, in memory that the next slice takes."""
        rows, columns = self.shape
        whole = BLOCK // math.gcd(BLOCK, columns)  # rows that end where a block does
        step = max(1, _SLICE_WEIGHTS // (columns * whole)) * whole
        scales = self.scales()
        for first in range(0, rows, step):
            last = min(first + step, rows)
            blocks = slice(first * columns // BLOCK, -(-last * columns // BLOCK))
            values = self._values(blocks, scales)
            yield slice(first, last), values[: (last - first) * columns].view(-1, columns)

    def _values(self, blocks: slice, scales: torch.Tensor) -> torch.Tensor:
        codes = self.codes[blocks.start * BLOCK // 2 : blocks.stop * BLOCK // 2]
        scales = scales[blocks]
        if codes.device.type != "cpu":
            table = torch.tensor(CODE, device=codes.device)
            both = torch.stack((codes >> 4, codes & 15), 1).long()
            return (table[both].view(-1, BLOCK) * scales[:, None]).view(-1)
        out = work_space(len(scales) * BLOCK)
        _dequantize(codes, scales, out)
        return out


class _Product(torch.autograd.Function):
    """x W^T with a gradient for x and none for W."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, matrix: NF4Matrix) -> torch.Tensor:
        context.matrix = matrix
        return matrix.product(x)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return context.matrix.gradient(gradients[0]), None


class NF4Linear(nn.Module):
    """A linear layer over an NF4 matrix (out, in), its bias as it was."""

    def __init__(self, matrix: NF4Matrix, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.matrix = matrix
        self.out_features, self.in_features = matrix.shape
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    @classmethod
    def of(cls, layer: nn.Linear) -> NF4Linear:
        """The layer, its matrix quantised. Raises: UserError for weights that are not finite."""
        if not bool(torch.isfinite(layer.weight).all()):
            raise UserError("weights that are NaN or infinite can't be quantised")
        return cls(NF4Matrix(layer.weight), layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        flat = x.reshape(-1, self.in_features)
        if x.requires_grad and torch.is_grad_enabled():
            y: torch.Tensor = _Product.apply(flat, self.matrix)  # type: ignore[no-untyped-call]
        else:
            y = self.matrix.product(flat.detach())
        y = y.view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def dequantized(self) -> torch.Tensor:
        """The weight as float32 (out, in)."""
        return self.matrix.dequantized()


def quantize(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) -> codes (blocks * 32,) uint8, two to the byte, and magnitudes (blocks,) float32."""
    blocks = F.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1)
    scaled = (blocks * (1.0 / scales.clamp(min=_LEAST_SCALE))[:, None]).clamp(-1, 1)
    codes = torch.bucketize(scaled.view(-1), _midpoints(), out_int32=True).to(torch.uint8)
    return codes[::2] << 4 | codes[1::2], scales


def _quantize_scales(scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(blocks,) -> their nearest numbers of the dynamic type, uint8, and the largest magnitudes."""
    padded = F.pad(scales, (0, -len(scales) % SCALE_BLOCK)).view(-1, SCALE_BLOCK)
    largest = padded.abs().amax(1)
    scaled = (padded * (1.0 / largest.clamp(min=_LEAST_SCALE))[:, None]).clamp(-1, 1).view(-1)
    table = _dynamic_code()
    codes = torch.bucketize(scaled[: len(scales)], (table[:-1] + table[1:]) / 2, out_int32=True)
    return codes.to(torch.uint8), largest


@functools.cache
def _midpoints() -> torch.Tensor:
    code = torch.tensor(CODE)
    return (code[:-1] + code[1:]) / 2


@functools.cache
def _dynamic_code() -> torch.Tensor:
    """The 256 numbers of the signed 8-bit dynamic type, in order.

    Seven decades; in each, the middles between evenly spaced numbers from 0.1 to 1, twice as many
    as in the one below.
    """
    numbers = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1)
        middles = 10 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)
        numbers += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(numbers))


@functools.cache
def _pairs() -> torch.Tensor:
    """The two values of each byte, (256, 2)."""
    code = torch.tensor(CODE)
    octets = torch.arange(256)
    return torch.stack((code[octets >> 4], code[octets & 15]), 1).contiguous()


def _dequantize(codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
    parts = min(compiled.threads(), torch.get_num_threads(), max(1, len(scales) // 1024))
    calls = []
    for part in range(parts):
        call = np.zeros(slots.ARGUMENTS, dtype=np.int64)
        call[slots.CODES], call[slots.SCALES] = codes.data_ptr(), scales.data_ptr()
        call[slots.PAIRS], call[slots.OUT] = _pairs().data_ptr(), out.data_ptr()
        call[slots.FIRST] = len(scales) * part // parts
        call[slots.LAST] = len(scales) * (part + 1) // parts
        calls.append(call)
    run("nf4_kernels", "dequantize", calls)

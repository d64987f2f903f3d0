"""Numbers in one byte each, by blocks: a scale for 256 of them and a code of uneven steps.

A code spends its bits where a block has its largest values and still reaches seven powers of ten
below: the more zeros lead, the smaller the power and the fewer bits are left for the fraction.
Sources: Dettmers 2016, "8-bit approximations for parallelism in deep learning", arXiv 1511.04561,
section 2.1 (the code); Dettmers et al. 2022, "8-bit optimizers via block-wise quantization", arXiv
2110.02861, section 2 (blocks, and the unsigned code, which has a bit more for the fraction).
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch

BLOCK = 256  # values that share a scale
_POWERS = 7
_HEAD_BITS, _TAIL_BITS = 17, 15  # of a float32: sign, exponent and 8 bits of the fraction


@functools.lru_cache(maxsize=2)
def dynamic_code(signed: bool) -> torch.Tensor:
    """What the 256 codes stand for, rising: (256,) float32, from -1 or 0 up to 1."""
    values = [0.0, 1.0]
    for power in range(_POWERS):
        steps = 2 ** (power if signed else power + 1)
        ends = torch.linspace(0.1, 1, steps + 1)
        middles = (ends[:-1] + ends[1:]) / 2
        scaled = (10.0 ** (power + 1 - _POWERS) * middles).tolist()
        values += scaled + ([-value for value in scaled] if signed else [])
    return torch.tensor(sorted(values))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tables:
    """Nearest codes by a look: a search among 256 would be most of an optimizer's time.

    Attributes:
        code: (256,) what the codes stand for.
        middles: (256,) where each code ends and the next begins; the last never does.
        first: (2 ** 17,) uint8: the code of the least float that begins with these 17 bits; no
            more than one other begins before the greatest.
    """

    code: torch.Tensor
    middles: torch.Tensor
    first: torch.Tensor


@functools.lru_cache(maxsize=8)
def _tables(signed: bool, device: torch.device) -> _Tables:
    code = dynamic_code(signed)
    middles = (code[:-1] + code[1:]) / 2
    heads = np.arange(2**_HEAD_BITS, dtype=np.uint32) << _TAIL_BITS
    heads[heads >> 31 == 1] |= 2**_TAIL_BITS - 1  # of negative floats the longest is the least
    first = torch.bucketize(torch.from_numpy(heads.view(np.float32)), middles).to(torch.uint8)
    ends = torch.cat([middles, torch.tensor([torch.inf])])
    return _Tables(code=code.to(device), middles=ends.to(device), first=first.to(device))


def _nearest(shares: torch.Tensor, signed: bool) -> torch.Tensor:
    """Codes of (N,) float32 in [-1, 1]: (N,) uint8."""
    tables = _tables(signed, shares.device)
    heads = (shares.view(torch.int32) >> _TAIL_BITS) & (2**_HEAD_BITS - 1)
    codes = tables.first[heads]
    return codes + (shares > tables.middles[codes.int()])


def num_blocks(count: int) -> int:
    """Scales that `count` values need."""
    return -(-count // BLOCK)


def quantize(
    values: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, *, signed: bool
) -> None:
    """Write `values` into `codes` and `scales`: the nearest code, by the largest value of a block.

    Args:
        values: (N,) float; not negative unless `signed`.
        codes: (N,) uint8.
        scales: (num_blocks(N),) float32.
    """
    blocks = _in_blocks(values)
    scales.copy_(blocks.abs().amax(1))
    # A block of zeros stays one: anything over nothing is nothing here.
    shares = blocks / scales.where(scales > 0, 1.0).to(values.dtype).unsqueeze(1)
    codes.copy_(_nearest(shares.float().flatten(), signed)[: len(codes)])


def dequantize(
    codes: torch.Tensor, scales: torch.Tensor, *, signed: bool, dtype: torch.dtype
) -> torch.Tensor:
    """What `quantize` wrote, as (N,) of `dtype`."""
    values = _tables(signed, codes.device).code[codes.int()].to(dtype)
    blocks = _in_blocks(values).mul_(scales.to(dtype).unsqueeze(1))
    return blocks.flatten()[: len(codes)]


def _in_blocks(values: torch.Tensor) -> torch.Tensor:
    missing = num_blocks(len(values)) * BLOCK - len(values)
    if missing:
        values = torch.nn.functional.pad(values, (0, missing))
    return values.view(-1, BLOCK)

"""How the numbers of a cache lie in memory: float32, float16, or ggml's blocks of 8 bits.

A coded row is decoded when it is read, so attention computes in float32 whatever the type; what is
lost is the rounding of keys and values. q8_0 is llama.cpp's: for each 32 numbers a float16 scale
and 32 codes, 34 bytes. Its rows keep their bytes wherever pages are copied or shared.

Source: ggml-quants (block_q8_0). Checked: the `gguf` package, to the bit.
"""

from __future__ import annotations

import torch

from lmworks.core.errors import unknown_name

CACHE_TYPES = ("f32", "f16", "q8_0")
F32, F16, Q8_0 = range(3)  # what kernels are told
_BLOCK, _BLOCK_BYTES = 32, 34
_DTYPES = {"f32": torch.float32, "f16": torch.float16, "q8_0": torch.uint8}


def check_cache_type(name: str) -> None:
    """Raises: UserError for an unknown name, with the nearest."""
    if name not in CACHE_TYPES:
        raise unknown_name("cache type", name, CACHE_TYPES)


def row_layout(name: str, size: int) -> tuple[torch.dtype, int]:
    """The type and the length of a row of `size` numbers.

    Rows that blocks of 32 don't divide become float16 where q8_0 is asked for.
    """
    if name == "q8_0":
        if size % _BLOCK:
            return torch.float16, size
        return torch.uint8, size // _BLOCK * _BLOCK_BYTES
    return _DTYPES[name], size


def coding(pool: torch.Tensor) -> int:
    """F32, F16 or Q8_0, by the type of the numbers that are held."""
    return {torch.float16: F16, torch.uint8: Q8_0}.get(pool.dtype, F32)


def row_size(pool: torch.Tensor) -> int:
    """How many numbers a row of `pool` stands for."""
    width = pool.shape[-1]
    return width // _BLOCK_BYTES * _BLOCK if pool.dtype == torch.uint8 else width


def encode(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(..., size) float32 -> (..., row) as a cache of this type holds them."""
    if dtype != torch.uint8:
        return values.to(dtype)
    blocks = values.float().unflatten(-1, (-1, _BLOCK))
    d = blocks.abs().amax(dim=-1, keepdim=True) / 127
    inverse = torch.where(d == 0, torch.zeros_like(d), 1 / d)
    scaled = blocks * inverse
    codes = (scaled.abs() + 0.5).floor().copysign(scaled)  # halves away from zero, as C rounds
    scales = d.half().view(torch.uint8)
    packed = torch.cat([scales, codes.to(torch.int8).view(torch.uint8)], dim=-1)
    return packed.flatten(-2)


def decode(rows: torch.Tensor) -> torch.Tensor:
    """(..., row) -> (..., size) float32."""
    if rows.dtype != torch.uint8:
        return rows.float()
    blocks = rows.unflatten(-1, (-1, _BLOCK_BYTES)).contiguous()
    d = blocks[..., :2].contiguous().view(torch.float16).float()
    codes = blocks[..., 2:].contiguous().view(torch.int8).float()
    return (codes * d).flatten(-2)

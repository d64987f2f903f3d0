"""Matrices as codes and scales, and how codes of few bits lie in words of 32."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from lmworks.models.compressed_scheme import Scheme

_WORD = 32
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # of the widest scale, that are tried


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodedMatrix:
    """value = (code - zero) * scale, for each scale's columns.

    Attributes:
        codes: (rows, columns): int8, or the torch type float8_e4m3fn.
        scales: (rows, groups) float32.
        zeros: (rows, groups) int8, or None for a symmetric scheme.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None

    def dequantized(self) -> torch.Tensor:
        """float32 (rows, columns)."""
        rows, columns = self.codes.shape
        values = self.codes.float().view(rows, self.scales.shape[1], -1)
        if self.zeros is not None:
            values = values - self.zeros.float()[..., None]
        return (values * self.scales[..., None]).view(rows, columns)


def round_to(
    values: torch.Tensor, scheme: Scheme, importance: torch.Tensor | None = None
) -> CodedMatrix:
    """Each number at its nearest code.

    The scale is that with which the largest number of a group just fits, or, given `importance`,
    the best of those down to 0.7 times it (clipping, as in Lin et al. 2023, AWQ, arXiv 2306.00978,
    section 5).

    Args:
        values: (rows, columns) float32; the scheme's groups divide the columns.
        importance: (columns,) float32: how much an error counts there, the mean square of inputs.
    """
    grouped = _grouped(values, scheme)
    least, most = grouped.amin(dim=-1).clamp(max=0), grouped.amax(dim=-1).clamp(min=0)
    scales, zeros = _scale(least, most, scheme)
    if importance is not None:
        weight = _grouped(importance.expand(values.shape), scheme)
        lowest = torch.full_like(least, torch.inf)
        for share in _SHARES:
            narrow, shifted = _scale(least * share, most * share, scheme)
            off = _values(_steps(grouped, scheme, narrow, shifted), narrow, shifted).sub_(grouped)
            error = off.square_().mul_(weight).sum(dim=-1)
            better = error < lowest
            lowest = torch.where(better, error, lowest)
            scales = torch.where(better, narrow, scales)
            if zeros is not None and shifted is not None:
                zeros = torch.where(better, shifted, zeros)
    return _coded(values, scheme, scales, zeros)


def round_with(values: torch.Tensor, scheme: Scheme, like: CodedMatrix) -> CodedMatrix:
    """Values (rows, n) at their nearest codes, with scales that are there, one for each row."""
    return _coded(values, dataclasses.replace(scheme, group_size=None), like.scales, like.zeros)


def _grouped(values: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """(rows, groups, columns of a group); one row and group where the whole has one scale."""
    if scheme.group_size == 0:
        return values.reshape(1, 1, -1)
    return values.reshape(len(values), -1, scheme.group_size or values.shape[1])


def _scale(
    least: torch.Tensor, most: torch.Tensor, scheme: Scheme
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if scheme.symmetric:
        half = 448.0 if scheme.kind == "float" else ((1 << scheme.num_bits) - 1) / 2
        scales = torch.maximum(-least, most) / half
        return torch.where(scales == 0, torch.finfo(torch.float32).eps, scales), None
    scales = (most - least) / ((1 << scheme.num_bits) - 1)
    scales = torch.where(scales == 0, torch.finfo(torch.float32).eps, scales)
    zeros = (scheme.lowest - least / scales).clamp(scheme.lowest, scheme.highest).round()
    return scales, zeros.to(torch.int8)


def _steps(
    grouped: torch.Tensor, scheme: Scheme, scales: torch.Tensor, zeros: torch.Tensor | None
) -> torch.Tensor:
    """The nearest codes of (rows, groups, size), as float32."""
    steps = grouped / scales[..., None]
    if scheme.kind == "float":
        return steps.clamp_(-scheme.highest, scheme.highest).to(torch.float8_e4m3fn).float()
    if zeros is not None:
        steps += zeros[..., None]
    return steps.round_().clamp_(scheme.lowest, scheme.highest)


def _values(steps: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
    if zeros is not None:
        steps = steps - zeros[..., None]
    return steps * scales[..., None]


def _coded(
    values: torch.Tensor, scheme: Scheme, scales: torch.Tensor, zeros: torch.Tensor | None
) -> CodedMatrix:
    steps = _steps(_grouped(values, scheme), scheme, scales, zeros).view(values.shape)
    codes = steps.to(torch.float8_e4m3fn if scheme.kind == "float" else torch.int8)
    if scheme.group_size == 0:
        scales = scales.expand(len(values), 1).contiguous()
        zeros = None if zeros is None else zeros.expand(len(values), 1).contiguous()
    return CodedMatrix(codes=codes, scales=scales, zeros=zeros)


def pack_words(codes: torch.Tensor, num_bits: int) -> torch.Tensor:
    """int8 (rows, n) -> int32 (rows, ceil(n * bits / 32)): one bit string per row, least first.

    A code is stored without its sign, as the number of steps above the least.
    """
    rows, n = codes.shape
    unsigned = (codes.numpy().astype(np.int16) + (1 << (num_bits - 1))).astype(np.uint8)
    bits = np.unpackbits(unsigned[..., None], axis=-1, count=num_bits, bitorder="little")
    words = -(-n * num_bits // _WORD)
    row = np.zeros((rows, words * _WORD), dtype=np.uint8)
    row[:, : n * num_bits] = bits.reshape(rows, -1)
    packed = np.packbits(row, axis=-1, bitorder="little")
    return torch.from_numpy(packed.view("<i4").astype(np.int32))


def unpack_words(words: torch.Tensor, num_bits: int, n: int) -> torch.Tensor:
    """The first n codes of each row of `pack_words`, int8 (rows, n).

    Raises: ValueError for another number of words than n codes take.
    """
    if words.shape[1] != -(-n * num_bits // _WORD):
        raise ValueError(f"{words.shape[1]} words can't hold {n} codes of {num_bits} bits")
    octets = np.ascontiguousarray(words.numpy().astype("<i4")).view(np.uint8)
    if num_bits == 4:
        unsigned = np.stack([octets & 15, octets >> 4], axis=-1).reshape(len(octets), -1)[:, :n]
    else:
        bits = np.unpackbits(octets, axis=-1, bitorder="little")[:, : n * num_bits]
        whole = bits.reshape(len(octets), n, num_bits)
        unsigned = np.packbits(whole, axis=-1, bitorder="little")[..., 0]
    signed = unsigned.astype(np.int16) - (1 << (num_bits - 1))
    return torch.from_numpy(signed.astype(np.int8))

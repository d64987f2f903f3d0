"""Where a token stands: rotary angles, ALiBi's slopes, vectors added to the embedding.

Rotary: each pair of a head's dimensions turned by an angle that grows with position.

Pairs are (i, i + D/2), the layout of Hugging Face checkpoints; GGUF files interleave them and are
put in this order when they are read. Sines and cosines are computed once per (config, head size),
shared by all layers and grown when a longer sequence comes, so a long `max_position_embeddings`
costs nothing until it is used.

Some frequencies depend on the length of the sequence; a table is then one of a length. Queries and
keys always agree: where a few lengths divide all (`RoPEConfig.bounds`), the cache turns its keys
anew when a sequence passes one (`turned_anew`); where each has its own (`RoPEConfig.grows`),
attention keeps its keys unturned and turns them all at each step. A prompt that is run at once, or
in chunks after `KVCache.expect`, gives what transformers gives. A sequence that grows past such a
length goes on with the frequencies of its new one; what deeper layers made of earlier positions
stays as it was, unless it is read anew (as the engine does).

Source: Su et al. 2021, arXiv 2104.09864.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lmworks.core.errors import UserError
from lmworks.models.config import (
    LearnedPositions,
    RelativePositions,
    RoPEConfig,
    SinusoidalPositions,
)
from lmworks.models.initialization import INIT_STD
from lmworks.models.rotary_frequencies import attention_factor, inverse_frequencies, reach

if TYPE_CHECKING:
    from lmworks.models.context import Context

_FIRST_LENGTH = 256
_MOST_TABLES = 8  # per config, of lengths and devices


class Rotary:
    """Cosines and signed sines, (positions, rotary_dim), for `apply_rotary`.

    Both are multiplied by the scaling's attention factor, so that q and k are.
    """

    def __init__(self, rope: RoPEConfig, rotary_dim: int) -> None:
        self._rope, self._rotary_dim = rope, rotary_dim
        self._tables: dict[tuple[torch.device, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self.depends_on_length, self.grows = rope.depends_on_length, rope.grows

    def tables(
        self, length: int, device: torch.device, *, num_positions: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines for a sequence of `length`, on `device`.

        At least as many rows as it is long, or as `num_positions`.
        """
        wanted = length if num_positions is None else num_positions
        key = (device, reach(self._rope, length))
        tables = self._tables.pop(key, None)
        if tables is None or len(tables[0]) < wanted:
            rows = max(_FIRST_LENGTH, 1 << (wanted - 1).bit_length())
            tables = self._compute(key[1], rows, device)
        if len(self._tables) >= _MOST_TABLES:
            self._tables.pop(next(iter(self._tables)), None)  # asked for longest ago
        self._tables[key] = tables
        return tables

    def _compute(
        self, length: int, rows: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Always on the CPU and outside autograd: the same table whoever asks first.
        with torch.device("cpu"), torch.inference_mode(False), torch.no_grad():
            cosines, sines = self._turns(torch.arange(rows), length)
        return cosines.to(device), sines.to(device)

    def at(self, positions: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines at some positions (...) of a sequence of `length` alone, each
        (..., rotary_dim).

        For single steps of long sequences, whose tables would grow with them.
        """
        with torch.no_grad():
            return self._turns(positions, length)

    def same_tables(self, lengths: Sequence[int]) -> bool:
        """Whether sequences of these lengths are turned alike."""
        return not self.depends_on_length or len({reach(self._rope, n) for n in lengths}) == 1

    def turned_anew(
        self, keys: torch.Tensor, positions: torch.Tensor, lengths: tuple[int, int]
    ) -> torch.Tensor:
        """Keys (..., D) of a sequence of `lengths[0]` as those of one of `lengths[1]`.

        Args:
            positions: where they stand, of the keys' shape without D, or one that spreads to it.
        """
        old, new = lengths
        rows = int(positions.max()) + 1
        cos, sin = (
            table[positions] / attention_factor(self._rope, old) ** 2
            for table in self.tables(old, keys.device, num_positions=rows)
        )
        unturned = apply_rotary(keys, cos, -sin)
        cos, sin = (t[positions] for t in self.tables(new, keys.device, num_positions=rows))
        return apply_rotary(unturned, cos, sin)

    def _turns(self, positions: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        frequencies = inverse_frequencies(self._rope, self._rotary_dim, length)
        angles = positions[..., None].float() * frequencies.to(positions.device)
        factor = attention_factor(self._rope, length)
        cos, sin = angles.cos() * factor, angles.sin() * factor
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rotary:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_rotary, (self._rope, self._rotary_dim)


@functools.cache
def shared_rotary(rope: RoPEConfig, rotary_dim: int) -> Rotary:
    """The one `Rotary` of this process for a config and head size."""
    return Rotary(rope, rotary_dim)


def turns(
    rotary: Rotary, context: Context, length: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and signed sines of a forward without a cache, broadcastable to (B, heads, T, D).

    Documents of a packed row are turned as if each stood alone.
    """
    places = context.places
    if places is None:
        cos, sin = rotary.tables(length, device)
        return cos[:length], sin[:length]
    key = ("turns", rotary)
    if key not in context.memo:
        lengths = None
        if rotary.depends_on_length and context.apart is not None:
            lengths = context.apart.lengths
        context.memo[key] = _turns_of(rotary, places, lengths)
    found: tuple[torch.Tensor, torch.Tensor] = context.memo[key]
    return found


def _turns_of(
    rotary: Rotary, places: torch.Tensor, lengths: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the tables, (B, 1, T, D), each from the table of its own length if that matters."""
    if lengths is None:
        cos, sin = rotary.tables(int(places.max()) + 1, places.device)
        return cos[places][:, None], sin[places][:, None]
    parts = []
    for length in lengths.unique().tolist():
        tables = rotary.tables(length, places.device)
        where = (lengths == length)[..., None]
        parts.append([torch.where(where, t[places.clamp(max=length - 1)], 0) for t in tables])
    cosines, sines = zip(*parts, strict=True)
    return sum(cosines)[:, None], sum(sines)[:, None]


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
    """Turn x (..., D) by its positions' angles; cos and signed_sin broadcast against it.

    Tables narrower than D turn the first dimensions and leave the rest.
    """
    width = cos.shape[-1]
    if width < x.shape[-1]:
        turned = apply_rotary(x[..., :width], cos, signed_sin)
        return torch.cat((turned, x[..., width:]), dim=-1)
    rotated: torch.Tensor = _Rotate.apply(x, cos, signed_sin)
    return rotated


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """How much each head's score falls per position of distance, (num_heads,) float32.

    Source: Press et al. 2022, arXiv 2108.12409, and its code for counts that are no power of two.
    """

    def powers(count: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / count) for i in range(count)]

    near = 1 << (num_heads.bit_length() - 1)
    slopes = powers(near) + powers(2 * near)[0::2][: num_heads - near]
    return torch.tensor(slopes)


class LearnedPositionTable(nn.Module):
    """A learned vector per position, added to the embedding."""

    vectors = ("weight",)  # see training/optimizers: a table is no matrix to make orthogonal

    def __init__(self, config: LearnedPositions, hidden_size: int) -> None:
        super().__init__()
        self.num_positions, self.offset = config.num_positions, config.offset
        self.weight = nn.Parameter(torch.empty(config.num_positions, hidden_size))

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """(...,) int64 -> (..., H). Raises: UserError for a position beyond the table."""
        rows = positions + self.offset
        traced = torch.compiler.is_compiling()  # an exported graph can't look at its numbers
        if not traced and rows.numel() and int(rows.max()) >= self.num_positions:
            raise UserError(
                f"position {int(positions.max())} is beyond the "
                f"{self.num_positions - self.offset} that the model learned: shorten the text"
            )
        return torch.nn.functional.embedding(rows, self.weight)

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Normal with a spread of 0.02."""
        nn.init.normal_(self.weight, std=INIT_STD, generator=generator)


class SinusoidalPositionTable(nn.Module):
    """Fixed sines and cosines, added to the embedding."""

    def __init__(self, config: SinusoidalPositions, hidden_size: int) -> None:
        super().__init__()
        self.config, self.hidden_size = config, hidden_size

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """(...,) int64 -> (..., H) float32."""
        return sinusoids(positions, self.hidden_size, self.config)

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Nothing is learned."""


def sinusoids(positions: torch.Tensor, size: int, config: SinusoidalPositions) -> torch.Tensor:
    """(...,) -> (..., size): sin and cos of position / theta^(2i / size)."""
    pairs = torch.arange(0, size, 2, device=positions.device).float()
    angles = positions[..., None].float() * config.theta ** (-pairs / size)
    parts = (angles.sin(), angles.cos())
    if config.interleaved:
        return torch.stack(parts, dim=-1).flatten(-2)[..., :size]
    return torch.cat(parts, dim=-1)[..., :size]


class RelativeBias(nn.Module):
    """A learned number per head and bucket of distance, added to the scores of all layers."""

    vectors = ("weight",)

    def __init__(self, config: RelativePositions, num_heads: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_buckets, num_heads))

    def forward(
        self, positions: torch.Tensor, num_seen: int, seen: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Positions (B or 1, T) of what looks -> (B or 1, heads, T, num_seen).

        `seen` (B or 1, num_seen) are those of what is looked at, 0, 1, 2 ... by default.
        """
        if seen is None:
            seen = torch.arange(num_seen, device=positions.device)[None]
        buckets = distance_buckets(seen[:, None] - positions[..., None], self.config)
        return torch.nn.functional.embedding(buckets, self.weight).permute(0, 3, 1, 2)

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Normal with a spread of 0.02."""
        nn.init.normal_(self.weight, std=INIT_STD, generator=generator)


def distance_buckets(distance: torch.Tensor, config: RelativePositions) -> torch.Tensor:
    """The bucket of each distance (position seen - position that looks), same shape, int64.

    Source: Raffel et al. 2020, arXiv 1910.10683, and the mesh-tensorflow code that it came with.
    """
    count = config.num_buckets // 2 if config.bidirectional else config.num_buckets
    first = (distance > 0).long() * count if config.bidirectional else torch.zeros_like(distance)
    far = distance.abs() if config.bidirectional else (-distance).clamp(min=0)
    exact = count // 2
    share = torch.log(far.clamp(min=1).float() / exact) / math.log(config.max_distance / exact)
    wide = (exact + (share * (count - exact)).long()).clamp(max=count - 1)
    return first + torch.where(far < exact, far, wide)


def build_positions(
    config: LearnedPositions | SinusoidalPositions, hidden_size: int
) -> LearnedPositionTable | SinusoidalPositionTable:
    """The module that turns positions into what is added to the embedding."""
    if isinstance(config, LearnedPositions):
        return LearnedPositionTable(config, hidden_size)
    return SinusoidalPositionTable(config, hidden_size)

"""Pictures of how positions are told: what is added, how far things turn, what is taken off.

Everything is asked of the blocks that models run with (`models.positions`, `rotary_frequencies`):
a picture is of what a model gets. Which rotary scalings there are is read from their union.

- the encoding: value by position and dimension (sinusoidal; cosines of a head's rotary angles)
- similarity of two positions: cosine of the added vectors; for rotary positions the mean over
  pairs of cos(angle), what a query meets of an equal key so far away
- rotary wave lengths: positions until a pair has turned once, under each scaling
- ALiBi: what is added to the score at each distance, by head
- relative: the bias of a freshly drawn table tells nothing, so its buckets are shown
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lmworks.core.errors import UserError
from lmworks.evaluation.position_schemes import scalings
from lmworks.models.config import (
    AttentionConfig,
    RelativePositions,
    RoPEConfig,
    SinusoidalPositions,
)
from lmworks.models.positions import (
    LearnedPositionTable,
    alibi_slopes,
    distance_buckets,
    shared_rotary,
    sinusoids,
)
from lmworks.models.rotary_frequencies import attention_factor, inverse_frequencies

if TYPE_CHECKING:
    from lmworks.models.model import Model

_MOST_POSITIONS, _MOST_DIMENSIONS, _MOST_HEADS = 4096, 512, 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters:
    """What the pictures are drawn for.

    Attributes:
        length: positions drawn.
        dimensions: of an added vector, and of a head.
        heads: for ALiBi's slopes.
        theta: base of the wave lengths.
        context: the trained context that scalings begin from.
        factor: how far they stretch it.
    """

    length: int = 256
    dimensions: int = 64
    heads: int = 8
    theta: float = 10000.0
    context: int = 128
    factor: float = 4.0

    def __post_init__(self) -> None:
        bounds = {
            "length": (2, _MOST_POSITIONS),
            "dimensions": (4, _MOST_DIMENSIONS),
            "heads": (1, _MOST_HEADS),
            "theta": (1.01, 1e9),
            "context": (2, _MOST_POSITIONS * 32),
            "factor": (1, 1024),
        }
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise UserError(f"{name} {value:g}: from {least:g} to {most:g}")
        if self.dimensions % 2:
            raise UserError(f"dimensions {self.dimensions}: an even number, as they are pairs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A matrix (rows, columns) with what its axes are; values lie between `low` and `high`."""

    name: str
    title: str
    meaning: str
    values: np.ndarray
    low: float
    high: float
    rows: str
    columns: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Waves:
    """Wave length in positions of each pair of rotary dimensions, under one scaling."""

    name: str
    lengths: list[float]
    attention_factor: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slope:
    """What ALiBi takes off a head's scores per token of distance."""

    head: int
    slope: float
    halves_at: float  # tokens after which a weight has halved, scores being equal


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionPictures:
    """All pictures for one set of parameters."""

    parameters: Parameters
    pictures: list[Picture]
    waves: list[Waves]
    decay: list[tuple[str, list[float]]]  # scheme -> similarity at distance 0, 1, 2 ...
    slopes: list[Slope]


def position_pictures(parameters: Parameters) -> PositionPictures:
    """Draw everything. Raises: UserError where a scaling does not fit the dimensions."""
    p = parameters
    positions = torch.arange(p.length)
    sines = sinusoids(positions, p.dimensions, SinusoidalPositions(theta=p.theta))
    stretched = _ropes(p)
    slopes = alibi_slopes(p.heads)
    return PositionPictures(
        parameters=p,
        pictures=[
            Picture(
                name="sinusoidal",
                title="Sinusoidal",
                meaning="Added to the token's vector: sin and cos of position / theta^(2i/d), in "
                "turn. Fast waves tell neighbours apart, slow ones far places.",
                values=sines.numpy(), low=-1, high=1, rows="position", columns="dimension",
            ),
            Picture(
                name="similarity",
                title="Sinusoidal: how alike positions are",
                meaning="Cosine of the vectors of two positions: it depends on their distance "
                "alone, high along the diagonal.",
                values=_similarity(sines), low=-1, high=1, rows="position", columns="position",
            ),
            *(_rope_picture(name, rope, p) for name, rope in stretched.items()),
            _alibi_picture(slopes, p),
            _relative_picture(p),
        ],
        waves=[_waves(name, rope, p) for name, rope in stretched.items()],
        decay=_decay(sines, stretched, p),
        slopes=[
            Slope(head=i, slope=s, halves_at=math.log(2) / s) for i, s in enumerate(slopes.tolist())
        ],
    )  # fmt: skip


def model_pictures(model: Model, length: int) -> list[Picture]:
    """What a model itself has learned or was given, as far as it can be drawn.

    Args:
        length: positions drawn, at most.
    Returns: nothing for a model that tells positions by fixed rules alone.
    """
    model = model.encoder or model
    found = []
    table = model.embed_positions
    if isinstance(table, LearnedPositionTable):
        rows = table.weight.detach()[table.offset : table.offset + length]
        most = float(rows.abs().max())
        found.append(Picture(
            name="learned", title="Learned vectors of this model",
            meaning="Added to the token's vector, as training left them.",
            values=rows.numpy(), low=-most, high=most, rows="position", columns="dimension",
        ))  # fmt: skip
        found.append(Picture(
            name="learned similarity", title="How alike this model's positions are",
            meaning="Cosine of the learned vectors of two positions. Nobody told the model that "
            "neighbours should be alike.",
            values=_similarity(rows), low=-1, high=1, rows="position", columns="position",
        ))  # fmt: skip
    if model.relative_bias is not None:
        bias = model.relative_bias(torch.tensor([[length - 1]]), length)[0, :, 0].flip(-1).detach()
        most = float(bias.abs().max())
        found.append(Picture(
            name="relative bias", title="Bias of this model by distance",
            meaning="Added to the scores of every layer at each distance back.",
            values=bias.numpy(), low=-most, high=most, rows="head", columns="distance",
        ))  # fmt: skip
    return found


def model_parameters(model: Model, length: int) -> Parameters:
    """The parameters of the pictures that fit a model: its head size, heads, theta and context."""
    config = (model.encoder or model).config
    mixers = [layer.mixer for layer in config.layers if isinstance(layer.mixer, AttentionConfig)]
    if not mixers:
        raise UserError("this model has no attention, so nothing tells it positions in this way")
    mixer, plain_values = mixers[0], Parameters()
    rope = mixer.rope
    return dataclasses.replace(
        plain_values,
        length=length,
        dimensions=rope.rotary_dim(mixer.head_dim) if rope else mixer.head_dim // 2 * 2,
        heads=min(mixer.num_attention_heads, _MOST_HEADS),
        theta=rope.theta if rope else plain_values.theta,
        context=config.max_position_embeddings,
    )


def _ropes(p: Parameters) -> dict[str, RoPEConfig]:
    """Plain rotary positions, and each scaling that the config knows."""
    longest = p.context * p.factor
    found = {"rope": RoPEConfig(theta=p.theta)}
    for name, scaling in scalings(p.context, longest).items():
        found[f"rope, {name}"] = RoPEConfig(theta=p.theta, scaling=scaling)
    for rope in found.values():
        rope.rotary_dim(p.dimensions)
    return found


def _frequencies(rope: RoPEConfig, p: Parameters) -> torch.Tensor:
    """(dimensions / 2,) radians per position, of a sequence as long as the stretched context."""
    return inverse_frequencies(rope, p.dimensions, round(p.context * p.factor))


def _rope_picture(name: str, rope: RoPEConfig, p: Parameters) -> Picture:
    half, length = p.dimensions // 2, max(p.length, round(p.context * p.factor))
    cos, _ = shared_rotary(rope, p.dimensions).tables(length, torch.device("cpu"))
    values = cos[: p.length, :half] / attention_factor(rope, length)
    kind = name.partition(", ")[2]
    meaning = "cos of the angle by which each pair of a query's and key's dimensions is turned."
    if kind:
        meaning = f"The same with the scaling {kind}, which stretches {p.context} positions "
        meaning += f"{p.factor:g} times."
    return Picture(
        name=name, title=f"RoPE{f', {kind}' if kind else ''}", meaning=meaning,
        values=values.numpy(), low=-1, high=1, rows="position", columns="pair",
    )  # fmt: skip


def _alibi_picture(slopes: torch.Tensor, p: Parameters) -> Picture:
    bias = -slopes[:, None] * torch.arange(p.length)
    return Picture(
        name="alibi", title="ALiBi",
        meaning="What is left of a weight at each distance, exp(-slope x distance), scores being "
        "equal: some heads see a few tokens, others hundreds.",
        values=bias.exp().numpy(), low=0, high=1, rows="head", columns="distance",
    )  # fmt: skip


def _relative_picture(p: Parameters) -> Picture:
    config = RelativePositions(bidirectional=False)
    buckets = distance_buckets(-torch.arange(p.length), config)
    return Picture(
        name="relative", title="Relative (T5): buckets",
        meaning="Each distance takes a bucket with a learned number: near ones have one each, far "
        "ones share.",
        values=torch.nn.functional.one_hot(buckets, config.num_buckets).T.float().numpy(),
        low=0, high=1, rows="bucket", columns="distance",
    )  # fmt: skip


def _similarity(vectors: torch.Tensor) -> np.ndarray:
    units = torch.nn.functional.normalize(vectors, dim=-1)
    return (units @ units.T).numpy()


def _waves(name: str, rope: RoPEConfig, p: Parameters) -> Waves:
    lengths = (2 * math.pi / _frequencies(rope, p)).tolist()
    factor = attention_factor(rope, round(p.context * p.factor))
    return Waves(name=name, lengths=lengths, attention_factor=factor)


def _decay(
    sines: torch.Tensor, ropes: dict[str, RoPEConfig], p: Parameters
) -> list[tuple[str, list[float]]]:
    distances = torch.arange(p.length).float()
    found = [("sinusoidal", _similarity(sines)[0].tolist())]
    for name, rope in ropes.items():
        angles = torch.outer(distances, _frequencies(rope, p))
        found.append((name, angles.cos().mean(-1).tolist()))
    return found


def plain(found: PositionPictures) -> dict[str, Any]:
    """Everything but the matrices, as plain values."""
    return {
        "parameters": dataclasses.asdict(found.parameters),
        "waves": [dataclasses.asdict(waves) for waves in found.waves],
        "decay": [{"name": name, "similarity": values} for name, values in found.decay],
        "slopes": [dataclasses.asdict(slope) for slope in found.slopes],
    }

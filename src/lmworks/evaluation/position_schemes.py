"""Ways of telling positions: what a model is trained with, and what it is stretched with after.

A scheme is trained; a scaling is put into the model that was trained with rotary positions, so
that it costs no training of its own. Which scalings there are is read from the union that
`RoPEConfig` holds; those that need numbers of their own for each dimension are left out.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import TYPE_CHECKING, Any

from lmworks.models.config import (
    LearnedPositions,
    ModelConfig,
    RelativePositions,
    RoPEConfig,
    SinusoidalPositions,
)
from lmworks.models.config.positions import RoPEScaling

if TYPE_CHECKING:
    from lmworks.models.model import Model

# name: what it does, in a sentence.
SCHEMES: dict[str, str] = {
    "none": "nothing is told: a causal model can still count what it sees",
    "learned": "a learned vector for each position is added to the token's",
    "sinusoidal": "fixed sines and cosines of many wave lengths are added to the token's vector",
    "rope": "queries and keys are turned by an angle that grows with position",
    "alibi": "scores fall with distance, by a slope of each head's own",
    "relative": "a learned number for each distance is added to the scores, far ones share",
}


def with_scheme(config: ModelConfig, scheme: str, longest: int) -> ModelConfig:
    """The same model with another way of telling positions.

    Args:
        longest: positions that a learned table must hold.
    """
    told: dict[str, Any] = {"positions": None, "relative_positions": None}
    rope = RoPEConfig() if scheme == "rope" else None
    if scheme == "learned":
        told["positions"] = LearnedPositions(num_positions=longest)
    elif scheme == "sinusoidal":
        told["positions"] = SinusoidalPositions()
    elif scheme == "relative":
        told["relative_positions"] = RelativePositions(bidirectional=False)
    return dataclasses.replace(_attending(config, rope=rope, alibi=scheme == "alibi"), **told)


def _attending(config: ModelConfig, **changes: Any) -> ModelConfig:
    """`changes` in the attention of every layer."""
    layers = tuple(
        dataclasses.replace(layer, mixer=dataclasses.replace(layer.mixer, **changes))  # type: ignore[type-var]
        for layer in config.layers
    )
    return dataclasses.replace(config, layers=layers)


def scalings(context: int, longest: float) -> dict[str, Any]:
    """name: a scaling that stretches `context` to `longest` positions."""
    known = {"factor": longest / context, "original_max_position_embeddings": context}
    found = {}
    for kind in typing.get_args(RoPEScaling):
        fields = {field.name: field for field in dataclasses.fields(kind)}
        needed = [n for n, f in fields.items() if f.default is dataclasses.MISSING]
        if not set(needed) <= known.keys():
            continue
        scaling = kind(**{n: v for n, v in known.items() if n in fields})
        if RoPEConfig(scaling=scaling).depends_on_length:  # it grows with the sequence by itself
            scaling = dataclasses.replace(scaling, factor=1.0)
        found[kind.kind] = scaling
    return found


def stretched(model: Model, scaling: Any) -> Model:
    """A model that was trained with rotary positions, with a scaling put in; weights are shared."""
    from lmworks.models.skeleton import skeleton

    changed = skeleton(_attending(model.config, rope=RoPEConfig(scaling=scaling)))
    changed.load_state_dict(model.state_dict(), assign=True)
    return changed.eval()

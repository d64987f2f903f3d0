"""What all configs share: the checks of their values, and what a block keeps of a sequence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from lmworks.core.errors import UserError

if TYPE_CHECKING:
    from lmworks.models.config.model import ModelConfig

Shape = tuple[int, ...]
_LARGEST = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a block keeps of one sequence while it is decoded, by name.

    Attributes:
        per_position: one (heads, size) for each position, so that memory grows with the sequence.
        fixed: states whose size does not depend on the sequence's length.
        window: positions that are looked back at, if not all.
    """

    per_position: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    fixed: Mapping[str, Shape] = field(default_factory=dict)
    window: int | None = None


# What a forward may be told of its rows (`Model.hidden_states`), and a block can honour or not.
DOCUMENTS, POSITIONS, VISIBLE = "documents", "positions", "visible"
EVERYTHING = frozenset({DOCUMENTS, POSITIONS, VISIBLE})


class BlockConfig:
    """A mixer's or a feed-forward's config; `kind` is its name in `models.base.BLOCKS`.

    `reads_apart`: of packed rows, the layer hands each document over as a row of its own, since the
    block carries a state from position to position.
    """

    kind: ClassVar[str]
    reads_apart: ClassVar[bool] = False

    def honours(self) -> frozenset[str]:
        """What the block can be told of its rows: `documents`, `positions`, `visible`."""
        return frozenset({DOCUMENTS}) if self.reads_apart else frozenset()

    def kept(self, model: ModelConfig) -> Kept:
        """What the block keeps of a sequence; nothing, unless a block says otherwise."""
        return Kept()

    def sequence_flops(self, model: ModelConfig, context_length: int) -> float:
        """Operations per token beside those with the block's matrices, as sums over positions."""
        return 0.0

    def idle_parameters(self, model: ModelConfig) -> int:
        """Parameters that a token does not meet: the experts that were not chosen."""
        return 0


def check_count(config: Any, *names: str, least: int = 1) -> None:
    """Raises: UserError unless these fields are whole numbers of at least `least`."""
    for name in names:
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not least <= value <= _LARGEST:
            raise UserError(
                f"{owner(config)}: {name} must be a whole number >= {least}, not {value!r}"
            )


def check_positive(config: Any, *names: str) -> None:
    """Raises: UserError unless these fields are finite numbers above 0."""
    for name in names:
        value = getattr(config, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value <= 0:
            raise UserError(f"{owner(config)}: {name} must be a number above 0, not {value!r}")


def check_choice(config: Any, name: str, choices: Any) -> None:
    """Raises: UserError unless the field is one of `choices`."""
    value = getattr(config, name)
    if not isinstance(value, str) or value not in choices:
        raise UserError(
            f"{owner(config)}: {name} {value!r} is not known: choose from {', '.join(choices)}"
        )


def owner(config: Any) -> str:
    """What an error calls `config`."""
    words = {
        "ModelConfig": "model",
        "RoPEConfig": "rope",
        "LayerConfig": "layer",
        "RouterConfig": "router",
    }
    name = type(config).__name__
    return words.get(name) or str(getattr(config, "kind", name))

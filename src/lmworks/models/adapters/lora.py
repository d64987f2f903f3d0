"""LoRA: a product of two thin matrices beside a frozen one, W x + s B A x.

`LoRAConfig` says which layers, and how wide. rsLoRA (`use_rslora`) divides alpha by the square root
of the rank instead of the rank, so that wide adapters learn as fast as narrow ones. A starts
random and B at zero, as PEFT starts them, so that the model at first says what it said.

The layer is one function with a backward of its own (`lora_function.py`).
Source: Hu et al. 2021, arXiv 2106.09685, section 4.1; rsLoRA: Kalajdzievski 2023, arXiv 2312.03732.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from lmworks.core.config import option
from lmworks.core.errors import UserError
from lmworks.models.adapters import frozen
from lmworks.models.adapters.base import Adapter, AdapterConfig
from lmworks.models.adapters.lora_function import lora_product
from lmworks.models.adapters.targets import ALL_LINEAR, is_embedding, is_linear, matching, put
from lmworks.models.adapters.whole_modules import put_whole_modules

if TYPE_CHECKING:
    from lmworks.models.adapters.foreign import ForeignNames
    from lmworks.models.model import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig(AdapterConfig):
    """Low-rank updates of linear layers."""

    kind: str = dataclasses.field(default="lora", init=False)
    rank: int = option(16, help="width of the two matrices of each layer")
    alpha: float = option(32.0, help="the update is scaled by alpha / rank")
    dropout: float = option(0.0, help="share of a layer's inputs that the update does not see")
    targets: tuple[str, ...] = option(
        (ALL_LINEAR,), help="names of layers, or patterns of them; all-linear: all but the head"
    )
    use_rslora: bool = option(False, help="scale by alpha / sqrt(rank) instead")
    modules_to_save: tuple[str, ...] = option(
        (), help="modules that are trained whole beside it, such as lm_head"
    )

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"{self.kind}: rank must be at least 1, not {self.rank}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"{self.kind}: dropout is a share from 0 to below 1: {self.dropout}")
        if not math.isfinite(self.alpha) or self.alpha <= 0:
            raise UserError(f"{self.kind}: alpha must be a number above 0, not {self.alpha}")
        if not self.targets:
            raise UserError(f"{self.kind}: no targets: name layers, or {ALL_LINEAR}")

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def attach(self, model: Model, generator: torch.Generator) -> dict[str, nn.Module]:
        """See `AdapterConfig`."""
        kinds = matching(model, self.targets, _can_hold, "linear layer")
        parts = {
            path: self.part(path, base, self.rank, self.scale, generator)
            for path, base in kinds.items()
        }
        for path, part in parts.items():
            put(model, path, part)
        return parts | put_whole_modules(model, self.modules_to_save)

    def part(
        self, path: str, base: nn.Module, rank: int, scale: float, generator: torch.Generator
    ) -> nn.Module:
        """What stands in the place of `base`, with fresh weights."""
        check_rank(path, base, rank)
        kind = LoRAEmbedding if is_embedding(base) else self.linear_type()
        return kind(base, rank=rank, scale=scale, dropout=self.dropout, generator=generator)

    def linear_type(self) -> type[LoRALinear]:
        """The module that stands in the place of a linear layer."""
        return LoRALinear

    def to_files(
        self, adapter: Adapter, names: ForeignNames
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """See `AdapterConfig`."""
        from lmworks.models.adapters.lora_files import write

        return write(self, adapter, names)

    @classmethod
    def from_files(
        cls,
        model: Model,
        values: Mapping[str, Any],
        tensors: dict[str, torch.Tensor],
        names: ForeignNames,
    ) -> Adapter:
        """See `AdapterConfig`."""
        from lmworks.models.adapters.lora_files import read

        return read(cls, model, values, tensors, names)


class LowRank(nn.Module):
    """A frozen part with a low-rank update, scale B A; what a linear layer and a table share."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter

    def __init__(self, base: nn.Module, scale: float) -> None:
        super().__init__()
        self.base: Any = base
        self.scale, self.enabled = scale, True

    @property
    def rank(self) -> int:
        return len(self.lora_A)

    def trained(self) -> list[nn.Parameter]:
        """See `Part`."""
        return [self.lora_A, self.lora_B]

    def update(self) -> torch.Tensor:
        """What is added to the frozen part, (out, in)."""
        return self.scale * (self.lora_B @ self.lora_A)

    def taken_away(self) -> nn.Module:
        """See `Part`."""
        base: nn.Module = self.base
        return base


class LoRALinear(LowRank):
    """(..., in) -> (..., out): `base`, which stays as it is, and a low-rank update of it."""

    def __init__(
        self,
        base: nn.Module,
        *,
        rank: int,
        scale: float,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(base, scale)
        self.in_features: int = self.base.in_features
        self.out_features: int = self.base.out_features
        self.dropout = dropout
        bound = 1 / math.sqrt(self.in_features)  # kaiming_uniform with a = sqrt(5)
        start = torch.empty(rank, self.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(start)
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        if not self.enabled:
            out: torch.Tensor = self.base(x)
            return out
        return lora_product(x, self.lora_A, self.lora_B, self.base, self.scale, self._dropped(x))

    def _dropped(self, x: torch.Tensor) -> torch.Tensor | None:
        """x with some of it dropped, for the update; None where it sees all of x."""
        if not (self.training and self.dropout):
            return None
        return F.dropout(x, self.dropout)

    def merged(self) -> nn.Module:
        """See `Part`."""
        return frozen.as_linear(frozen.weight(self.base) + self.update(), frozen.bias(self.base))


class LoRAEmbedding(LowRank):
    """ids (...) -> (..., embedding_dim): a frozen table, and a low-rank update of its rows.

    A tied head goes on with the frozen table, as in PEFT.
    """

    def __init__(
        self,
        base: nn.Module,
        *,
        rank: int,
        scale: float,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(base, scale)
        self.num_embeddings: int = self.base.num_embeddings
        self.embedding_dim: int = self.base.embedding_dim
        # Looked up rather than multiplied, the first of the two starts at zero here.
        self.lora_A = nn.Parameter(torch.zeros(rank, self.num_embeddings))
        start = torch.empty(self.embedding_dim, rank).normal_(generator=generator)
        self.lora_B = nn.Parameter(start)

    @property
    def weight(self) -> torch.Tensor:
        """The frozen table."""
        table: torch.Tensor = self.base.weight
        return table

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """See the class."""
        rows: torch.Tensor = self.base(input_ids)
        if not self.enabled:
            return rows
        return rows + self.scale * (F.embedding(input_ids, self.lora_A.mT) @ self.lora_B.mT)

    def merged(self) -> nn.Module:
        """See `Part`."""
        return frozen.as_embedding(frozen.weight(self.base) + self.update().mT)


def check_rank(path: str, base: Any, rank: int) -> None:
    """Raises: UserError for a rank that the matrix can't have."""
    if is_embedding(base):
        shape = (base.num_embeddings, base.embedding_dim)
    else:
        shape = (base.out_features, base.in_features)
    if rank > min(shape):
        raise UserError(
            f"rank {rank} is more than {path} ({shape[0]} x {shape[1]}) can have: at most "
            f"{min(shape)}"
        )


def _can_hold(module: nn.Module) -> bool:
    return is_linear(module) or is_embedding(module)

"""The seam: an optimizer is made from (model, config), and a line in this table."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

from lmworks.core.config import option
from lmworks.core.tables import look_up

if TYPE_CHECKING:
    import torch
    from torch import nn

OPTIMIZERS = {
    "adamw": "lmworks.training.optimizers.adamw:make_adamw",
    "muon": "lmworks.training.optimizers.muon:make_muon",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Which optimizer, and its rates."""

    name: str = option("muon", help="muon or adamw")
    learning_rate: float = option(3e-3, help="peak rate with adamw")
    matrix_learning_rate: float = option(0.013, help="peak rate with muon, of hidden matrices")
    embedding_learning_rate: float = option(0.01, help="peak rate with muon, of all else")
    weight_decay: float = option(0.1, help="decoupled, on matrices only")
    beta1: float = option(0.9, help="decay of AdamW's first moment")
    beta2: float = option(0.95, help="decay of AdamW's second moment")
    max_grad_norm: float = option(1.0, help="gradients are scaled down to this norm")


class Optimizer(Protocol):
    """What the trainer needs of an optimizer."""

    def step(self, rate: float) -> None:
        """Update the weights; `rate` in [0, 1] scales the peak learning rates."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Raises: UserError for a name that no table holds."""
    make = look_up(OPTIMIZERS, config.name, seam="optimizer")
    optimizer: Optimizer = make(model, config)
    return optimizer


def matrices_and_rest(
    model: nn.Module,
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Trainable parameters as (hidden matrices, embeddings and output head, vectors).

    The split decides weight decay (vectors get none) and what Muon may treat as a matrix. A module
    names in `vectors` those of its parameters that are none, whatever their shape.
    """
    from torch import nn

    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tables |= {id(p) for name, p in model.named_parameters() if name.startswith("lm_head")}
    named = {id(getattr(m, name)) for m in model.modules() for name in getattr(m, "vectors", ())}
    matrices, embeddings, vectors = [], [], []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in tables:
            embeddings.append(parameter)
        elif parameter.ndim >= 2 and id(parameter) not in named:
            matrices.append(parameter)
        else:
            vectors.append(parameter)
    return matrices, embeddings, vectors

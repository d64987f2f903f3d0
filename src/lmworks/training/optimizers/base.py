"""The seam: an optimizer is made from (model, config), and a line in this table."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

from lmworks.core.config import option
from lmworks.core.errors import unknown_name
from lmworks.core.tables import look_up

if TYPE_CHECKING:
    import torch
    from torch import nn

OPTIMIZERS = {
    "adamw": "lmworks.training.optimizers.adamw:make_adamw",
    "adamw_8bit": "lmworks.training.optimizers.adamw_8bit:make_adamw_8bit",
    "adafactor": "lmworks.training.optimizers.adafactor:make_adafactor",
    "lion": "lmworks.training.optimizers.lion:make_lion",
    "muon": "lmworks.training.optimizers.muon:make_muon",
}
# What a peak rate of 0 stands for. Lion moves every weight by the whole rate, hence its tenth.
_PEAK_RATES = {"lion": 3e-4}
_PEAK_RATE = 3e-3

# Who decays, unless the config says so: here and nowhere else. Vectors hardly overfit, and a norm
# that decays scales its layer down. With Muon, whose embeddings move at rates of their own, the
# row of a rare word would be worn away between two times that it is met.
KINDS = ("matrices", "embeddings", "norms", "biases", "others")
_DECAYED = {"muon": ("matrices",)}
_USUALLY_DECAYED = ("matrices", "embeddings")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdafactorConfig:
    """What only Adafactor has."""

    relative_step: bool = option(
        False, help="a rate of 1/sqrt(step), the peak rate at most (T5's pre-training)"
    )
    scale_parameter: bool = option(False, help="rates in proportion to a matrix's own size")
    first_moment: bool = option(False, help="keep momentum too, 4 bytes per parameter")
    clip_threshold: float = option(1.0, help="root mean square that an update is cut down to")
    decay_rate: float = option(-0.8, help="power of the step by which old squares are forgotten")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Which optimizer, and its rates."""

    name: str = option("muon", help="muon, adamw, adamw_8bit, lion or adafactor")
    learning_rate: float = option(
        0.0, help="peak rate, but with muon; 0: 3e-3 (adamw, adamw_8bit, adafactor), 3e-4 (lion)"
    )
    matrix_learning_rate: float = option(0.013, help="peak rate with muon, of hidden matrices")
    embedding_learning_rate: float = option(0.01, help="peak rate with muon, of all else")
    weight_decay: float = option(0.1, help="decoupled, of what `decayed` names")
    decayed: list[str] | None = option(
        None,
        help="matrices, embeddings, norms, biases, others; none: matrices and embeddings, with "
        "muon only matrices",
    )
    beta1: float = option(0.9, help="decay of the first moment")
    beta2: float = option(0.95, help="decay of the second moment; of Lion's momentum")
    max_grad_norm: float = option(1.0, help="gradients are scaled down to this norm")
    adafactor: AdafactorConfig = option(AdafactorConfig(), help="what only adafactor has")

    @property
    def peak_rate(self) -> float:
        """The rate that a schedule's factor multiplies."""
        return self.learning_rate or _PEAK_RATES.get(self.name, _PEAK_RATE)


class Optimizer(Protocol):
    """What the trainer needs of an optimizer."""

    @property
    def state_bytes(self) -> int:
        """Bytes that are kept between steps, once every parameter has had one."""

    def step(self, rate: float) -> None:
        """Update the weights; `rate` in [0, 1] scales the peak learning rates."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The optimizer of a model's parameters that ask for a gradient.

    Raises: UserError for a name that no table holds, or a kind of parameters that is none.
    """
    make = look_up(OPTIMIZERS, config.name, seam="optimizer")
    optimizer: Optimizer = make(model, config)
    return optimizer


def state_bytes(model: nn.Module, config: OptimizerConfig) -> int:
    """What training `model` would keep beside weights and gradients; it may lie on "meta"."""
    return build_optimizer(model, config).state_bytes


def decay_of(config: OptimizerConfig, kind: str) -> float:
    """The weight decay of a kind of parameters."""
    decayed = config.decayed
    if decayed is None:
        return config.weight_decay * (kind in _DECAYED.get(config.name, _USUALLY_DECAYED))
    for name in decayed:
        if name not in KINDS:
            raise unknown_name("kind of parameters in loop.optimizer.decayed", name, KINDS)
    return config.weight_decay * (kind in decayed)


def decay_groups(
    kinds: dict[str, list[torch.nn.Parameter]], config: OptimizerConfig
) -> list[tuple[list[torch.nn.Parameter], float]]:
    """Parameters with their decay: those that have some, then the others; empty groups left out."""
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for kind, parameters in kinds.items():
        groups[decay_of(config, kind) > 0].extend(parameters)
    found = [(groups[True], config.weight_decay), (groups[False], 0.0)]
    return [group for group in found if group[0]]


def parameters_by_kind(model: nn.Module) -> dict[str, list[torch.nn.Parameter]]:
    """Trainable parameters by `KINDS`.

    Embeddings are tables and the output head; matrices are what else has two dimensions or more; a
    module names in `vectors` those of its parameters that are none, whatever their shape.
    """
    from torch import nn

    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tables |= {id(p) for name, p in model.named_parameters() if name.startswith("lm_head")}
    named = {id(getattr(m, name)) for m in model.modules() for name in getattr(m, "vectors", ())}
    norms = {
        id(p)
        for m in model.modules()
        if type(m).__name__.endswith("Norm")
        for p in m.parameters(recurse=False)
    }
    kinds: dict[str, list[torch.nn.Parameter]] = {kind: [] for kind in KINDS}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in tables:
            kind = "embeddings"
        elif parameter.ndim >= 2 and id(parameter) not in named:
            kind = "matrices"
        elif id(parameter) in norms:
            kind = "norms"
        else:
            kind = "biases" if name.rpartition(".")[2].endswith("bias") else "others"
        kinds[kind].append(parameter)
    return kinds


def matrices_and_rest(
    model: nn.Module,
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Trainable parameters as (hidden matrices, embeddings and output head, vectors)."""
    kinds = parameters_by_kind(model)
    vectors = [p for kind in ("norms", "biases", "others") for p in kinds[kind]]
    return kinds["matrices"], kinds["embeddings"], vectors

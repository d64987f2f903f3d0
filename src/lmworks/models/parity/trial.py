"""One stage of a model with one thing changed, given the input that the other side got.

A stage is what is between two points of the stream: the embedding, one layer, or the end (last
norm and head). It is built from our own blocks with the reference's config and weights, so that a
change of the config, of a tensor or of a piece of code is tested by the code that defines it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lmworks.core.errors import UserError
from lmworks.models.config import ModelConfig
from lmworks.models.context import Context, Encoded
from lmworks.models.model import Model
from lmworks.models.parity.differences import difference
from lmworks.models.parity.operations import hooked, normal_form, own_readings
from lmworks.models.skeleton import skeleton

State = dict[str, torch.Tensor]
Errors = dict[str, float]
Patch = Callable[[Model], "contextlib.AbstractContextManager[Any]"]
EMBEDDING, END = "embedding", "end"
_LAYER = re.compile(r"layers\.(\d+)(?:\.|$)")


def stage_of(operation: str) -> str:
    """The stage that an operation belongs to: "embedding", "layers.3" or "end"."""
    if layer := _LAYER.match(operation):
        return f"layers.{layer.group(1)}"
    return END if operation in ("norm", "logits") else EMBEDDING


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing that a port may do otherwise.

    Attributes:
        cause: its kind in a few words, for tables ("rope theta").
        says: what is otherwise, as a clause about the port ("turns q and k with theta 10000
            instead of 500000").
        fix: what to do about it.
        config, state: the stage's config and weights with the change; its only layer is number 0.
        patch: entered with the built stage, for changes of code.
        seen: (operation, tensor) -> how the port shows that operation, where it does so otherwise.
        known: whether the two sides were seen to differ in it, so that it is more than a guess.
        expense: how far-fetched it is; from 2 on it is tried when all else has failed.
    """

    cause: str
    says: str
    fix: str
    config: Callable[[ModelConfig], ModelConfig] | None = None
    state: Callable[[State], State] | None = None
    patch: Patch | None = None
    seen: Callable[[str, torch.Tensor], torch.Tensor] | None = None
    known: bool = False
    expense: int = 0


NO_CHANGE = Change(cause="", says="", fix="")


@dataclass(kw_only=True)
class Stage:
    """A stage with its input and what the other side made of it.

    Attributes:
        name: see `stage_of`.
        config: the reference's, of this stage's layer alone.
        state: its weights by our names, the layer being number 0.
        given: token ids (1, T) for the embedding, else the stream (1, T, H) that the port had.
        wanted: operation -> what the port made, in the order of computing; names as the stage's.
        skipped: layers before this stage that the port did not compute.
        encoded: the encoder's states that the port's cross attention looked at.
        layers: the weights of all layers of the reference, each as if it were this one.
    """

    name: str
    config: ModelConfig
    state: State
    given: torch.Tensor
    wanted: dict[str, torch.Tensor]
    layers: Sequence[State] = ()
    encoded: torch.Tensor | None = None
    skipped: tuple[int, ...] = ()
    built: Model | None = None  # of the config without a change, used again and again

    @torch.no_grad()
    def run(self, change: Change, operation: str = "", limit: float = math.inf) -> Errors | None:
        """How far each operation is from the port's with the change, relative.

        None if the change makes no sense here, or as soon as `operation` is further away than
        `limit`.
        """
        errors: Errors = {}

        def record(name: str, value: torch.Tensor) -> None:
            normal = normal_form(value, self.given.shape[1])
            if normal is None or name not in self.wanted:
                return
            shown = change.seen(name, normal) if change.seen else normal
            errors[name] = difference(self.wanted[name], shown).relative
            if name == operation and errors[name] > limit:
                raise _Enough

        try:
            model = self._changed(change)
            patch = change.patch(model) if change.patch else contextlib.nullcontext()
            with patch, hooked(model, own_readings(model), record):
                self._compute(model, record)
        except (_Enough, UserError, RuntimeError, ValueError, KeyError, IndexError):
            return None
        return None if operation and operation not in errors else errors

    def error(self, change: Change, operation: str) -> float:
        """How far one operation is from the port's; infinite if the change makes no sense."""
        return (self.run(change) or {}).get(operation, math.inf)

    def _changed(self, change: Change) -> Model:
        config = change.config(self.config) if change.config else self.config
        state = change.state(dict(self.state)) if change.state else dict(self.state)
        if config is not self.config:
            return _filled(skeleton(config), state)
        if self.built is None:
            self.built = skeleton(config)
        return _filled(self.built, state)

    def _compute(self, model: Model, record: Any) -> None:
        if self.name == EMBEDDING:
            positions = torch.arange(self.given.shape[1])
            record(EMBEDDING, model.embed(self.given, positions))
        elif self.name == END:
            states = self.given if model.norm is None else model.norm(self.given)
            record("norm", states)
            record("logits", model.logits(states))
        else:
            length = self.given.shape[1]
            bias = model.bias(torch.arange(length)[None], length)
            encoded = None if self.encoded is None else Encoded(self.encoded)
            model.layers[0](self.given, Context(record=record, bias=bias, encoded=encoded))


class _Enough(Exception):
    """The operation is known; the rest need not be computed."""


def one_stage(config: ModelConfig, state: Mapping[str, torch.Tensor], name: str) -> tuple[Any, Any]:
    """The config and the weights of one stage, its layer being number 0."""
    layer = _LAYER.match(name)
    number = int(layer.group(1)) if layer else 0
    kept = f"layers.{number}."
    config = dataclasses.replace(config, layers=(config.layers[number],))
    ours = {
        "layers.0." + key.removeprefix(kept) if key.startswith(kept) else key: value
        for key, value in state.items()
        if key.startswith(kept) or not key.startswith("layers.")
    }
    return config, ours


def stage_names(operation: str, stage: str) -> str:
    """`layers.7.mixer.q` as the stage calls it, `layers.0.mixer.q`."""
    return "layers.0" + operation.removeprefix(stage) if stage.startswith("layers.") else operation


def _filled(model: Model, state: State) -> Model:
    """The skeleton around these tensors, without copying them.

    A norm or bias that the change added and nobody has weights for does nothing at first.
    Raises: KeyError for another parameter without weights.
    """
    for name, parameter in model.named_parameters():
        if name not in state and name.rpartition(".")[0].endswith("norm"):
            fill = torch.zeros if name.endswith("bias") else torch.ones
            state[name] = fill(parameter.shape)
        elif name not in state and name.endswith("bias"):
            state[name] = torch.zeros(parameter.shape)
    fitting = {n: state[n] for n, _ in model.named_parameters() if n in state}
    model.load_state_dict(fitting, strict=False, assign=True)
    return model.eval()


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` while it lasts."""
    former = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, former)

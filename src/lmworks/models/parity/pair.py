"""Both sides as they ran: what they computed and what is known of them, and any stage of either."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lmworks.models.config import ModelConfig
from lmworks.models.parity.trial import EMBEDDING, END, Stage, one_stage, stage_names, stage_of

Trace = dict[str, torch.Tensor]
State = dict[str, torch.Tensor]
_ENCODER = "encoder."


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a side beside what it computes."""

    config: ModelConfig | None
    state: State
    own: bool


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The two of a comparison, in the order in which they were named.

    Attributes:
        ids: (1, T) what both read, or its rows of the embedding, (1, T, H).
        traces: operation -> tensor.
        rounded: parameters that differ by rounding alone.
        encoded: the encoder's states of each, for an encoder-decoder.
    """

    ids: torch.Tensor
    names: tuple[str, str]
    traces: tuple[Trace, Trace]
    known: tuple[Known, Known]
    rounded: tuple[str, ...]
    encoded: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)

    def around(self, operation: str) -> tuple[Pair, str]:
        """The pair as the operation's stack (encoder or the rest) sees it, and its name there."""
        if not operation.startswith(_ENCODER):
            states = (_states(self.traces[0]), _states(self.traces[1]))
            return dataclasses.replace(self, encoded=states), operation
        one, other = (_inner(trace) for trace in self.traces)
        first, second = (_encoder(known) for known in self.known)
        tables = [known.state.get("embed_tokens.weight") for known in self.known]
        table = next((table for table in tables if table is not None), None)
        changed = dataclasses.replace(
            self,
            ids=self.ids if table is None else table[self.ids],  # the encoder may have no table
            traces=(one, other),
            known=(first, second),
            rounded=tuple(name.removeprefix(_ENCODER) for name in self.rounded),
        )
        return changed, operation.removeprefix(_ENCODER)

    def stage(self, name: str, reference: int) -> Stage | None:
        """A stage with one side as the reference, given what the other, the port, was given.

        None if the reference is not known well enough or the port's input was not seen.
        """
        config, port = self.known[reference].config, self.traces[1 - reference]
        state, theirs = self.known[reference].state, self.known[1 - reference].state
        if config is None or not state or not _holds(config, name):
            return None
        given, skipped = (self.ids, []) if name == EMBEDDING else _given(name, config, port)
        if given is None:
            return None
        state = state | {key: theirs[key] for key in self.rounded if key in theirs}
        config_of_stage, weights = one_stage(config, state, name)
        wanted = {stage_names(o, name): v for o, v in port.items() if stage_of(o) == name}
        return Stage(
            name=name,
            config=config_of_stage,
            state=weights,
            given=given,
            wanted=wanted,
            layers=_layers(config, state) if name.startswith("layers.") else [],
            encoded=self.encoded[1 - reference],
            skipped=tuple(skipped),
        )

    def port_of(self, name: str, reference: int) -> tuple[ModelConfig | None, State]:
        """The port's config and weights of a stage, as far as they are known."""
        known = self.known[1 - reference]
        if known.config is not None and _holds(known.config, name):
            config, state = one_stage(known.config, known.state, name)
            return config, state
        if not name.startswith("layers."):
            return None, known.state
        prefix = name + "."
        held = {k.removeprefix(prefix): v for k, v in known.state.items() if k.startswith(prefix)}
        return None, {f"layers.0.{key}": tensor for key, tensor in held.items()}


def _inner(named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What belongs to the encoder, by the names that it has there."""
    return {k.removeprefix(_ENCODER): v for k, v in named.items() if k.startswith(_ENCODER)}


def _encoder(known: Known) -> Known:
    config = None if known.config is None else known.config.encoder
    return dataclasses.replace(known, config=config, state=_inner(known.state))


def _states(trace: Trace) -> torch.Tensor | None:
    """What the encoder leaves: its last norm, or its last layer where there is none."""
    layers = [name for name in trace if re.fullmatch(r"encoder\.layers\.\d+", name)]
    return trace.get("encoder.norm", trace[layers[-1]] if layers else None)


def _holds(config: ModelConfig, stage: str) -> bool:
    return not stage.startswith("layers.") or int(stage.split(".")[1]) < config.num_hidden_layers


def _given(
    name: str, config: ModelConfig, port: Trace
) -> tuple[torch.Tensor | None, Sequence[int]]:
    """The stream that the port's stage got, and the layers before it that the port left out."""
    number = config.num_hidden_layers if name == END else int(name.split(".")[1])
    before = number
    while before > 0 and f"layers.{before - 1}" not in port:
        before -= 1
    found = port.get(f"layers.{before - 1}" if before else EMBEDDING)
    return found, range(before, number)


def _layers(config: ModelConfig, state: State) -> list[State]:
    """The weights of each layer, named as those of layer 0."""
    layers: list[State] = [{} for _ in config.layers]
    for name, tensor in state.items():
        if name.startswith("layers."):
            _, number, rest = name.split(".", 2)
            layers[int(number)][f"layers.0.{rest}"] = tensor
    return layers

"""An optimizer's state by the parameter's name, out of an optimizer and back into one.

`state_dict` numbers parameters in the order in which an optimizer happened to get them, or stacks
them; by name a state can be cut, put together, and loaded by another number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from lmworks.core.errors import UserError
from lmworks.training.optimizers.base import OptimizerConfig, build_optimizer
from lmworks.training.optimizers.muon import Muon
from lmworks.training.optimizers.parameterwise import Parameterwise

_BESIDE = ""  # what belongs to no parameter
_COUNT = "steps of this parameter"
Names = Mapping[int, str]  # id of a parameter -> its name


def named_state(optimizer: Any, names: Names) -> dict[str, Any]:
    """{name: {key: value}}; under "" what is kept beside parameters.

    Raises: UserError for an optimizer whose state is kept in an unknown way.
    """
    found: dict[str, Any] = {}
    for part in _parts(optimizer):
        if isinstance(part, torch.optim.Optimizer):
            for parameter, state in part.state.items():
                found[names[id(parameter)]] = dict(state)
        elif isinstance(part, Parameterwise):
            for (parameter, _), state, steps in zip(part._parameters, part._states, part._steps):
                if steps:
                    found[names[id(parameter)]] = {**state, _COUNT: steps}
        else:
            for parameter, momentum in _momenta(part):
                found[names[id(parameter)]] = {"momentum": momentum}
            found[_BESIDE] = {"steps": part._steps}
    return found


def load_named_state(optimizer: Any, names: Names, state: Mapping[str, Any]) -> None:
    """Put back what `named_state` gave, also of an optimizer with more parameters."""
    for part in _parts(optimizer):
        if isinstance(part, torch.optim.Optimizer):
            for group in part.param_groups:
                for parameter in group["params"]:
                    kept = state.get(names.get(id(parameter), ""))
                    if kept is not None:
                        part.state[parameter] = {key: _copied(v) for key, v in kept.items()}
        elif isinstance(part, Parameterwise):
            for index, (parameter, _) in enumerate(part._parameters):
                kept = state.get(names.get(id(parameter), ""))
                if kept is not None:
                    part._steps[index] = kept[_COUNT]
                    tensors = {key: _copied(v) for key, v in kept.items() if key != _COUNT}
                    part._states[index] = tensors
        else:
            for parameter, momentum in _momenta(part):
                kept = state.get(names.get(id(parameter), ""))
                if kept is not None:
                    momentum.copy_(kept["momentum"])
            part._steps = state.get(_BESIDE, {}).get("steps", part._steps)


def native_state(
    structure: nn.Module, config: OptimizerConfig, state: Mapping[str, Any]
) -> dict[str, Any]:
    """A whole named state as the `state_dict` of one process's optimizer.

    Args:
        structure: of the whole model, with shapes alone.
    """
    optimizer, names = _whole_optimizer(structure, config)
    load_named_state(optimizer, names, state)
    native: dict[str, Any] = optimizer.state_dict()
    return native


def from_native(
    structure: nn.Module, config: OptimizerConfig, state: dict[str, Any]
) -> dict[str, Any]:
    """The named state of what one process's optimizer saved."""
    optimizer, names = _whole_optimizer(structure, config)
    optimizer.load_state_dict(state)
    return named_state(optimizer, names)


def _whole_optimizer(structure: nn.Module, config: OptimizerConfig) -> tuple[Any, Names]:
    # Memory that is never touched costs nothing: these weights are only there to be counted.
    memory = {
        name: nn.Parameter(torch.empty(p.shape, dtype=p.dtype))
        for name, p in structure.named_parameters()
        if p.requires_grad
    }
    before = dict(structure.named_parameters())
    try:
        for name, parameter in memory.items():
            set_parameter(structure, name, parameter)
        optimizer = build_optimizer(structure, config)
    finally:
        for name in memory:
            set_parameter(structure, name, before[name])
    return optimizer, {id(parameter): name for name, parameter in memory.items()}


def set_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Set a parameter by its dotted name."""
    path, _, last = name.rpartition(".")
    setattr(module.get_submodule(path) if path else module, last, parameter)


def _parts(optimizer: Any) -> list[Any]:
    """The optimizers inside that keep a state: PyTorch's, and those here."""
    found = list(_inside(optimizer))
    if not found and optimizer.state_dict():
        raise UserError(
            f"the state of optimizer {type(optimizer).__name__} can't be spread over processes: "
            "take another (--set loop.optimizer.name=adamw)"
        )
    return found


def _inside(optimizer: Any) -> Iterator[Any]:
    if isinstance(optimizer, torch.optim.Optimizer):
        yield optimizer
        return
    if isinstance(optimizer, Muon | Parameterwise):
        yield optimizer
    for value in vars(optimizer).values():
        if hasattr(value, "state_dict") and not isinstance(value, nn.Module):
            yield from _inside(value)


def _momenta(muon: Muon) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    for stack, momenta in zip(muon._stacks, muon._momenta, strict=True):
        yield from zip(stack, momenta, strict=True)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value

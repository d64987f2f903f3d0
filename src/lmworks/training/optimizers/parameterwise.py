"""What optimizers share that step every parameter by itself and keep tensors for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from lmworks.training.optimizers.base import OptimizerConfig

State = dict[str, torch.Tensor]


class Parameterwise(ABC):
    """Walks over parameters that have a gradient; a subclass says what one of them does.

    Args:
        groups: parameters and their weight decay.
    """

    def __init__(
        self, groups: list[tuple[list[torch.nn.Parameter], float]], config: OptimizerConfig
    ) -> None:
        self.config = config
        self._parameters = [(p, decay) for group, decay in groups for p in group]
        self._states: list[State] = [{} for _ in self._parameters]
        self._steps = [0 for _ in self._parameters]

    @abstractmethod
    def fresh(self, parameter: torch.Tensor) -> State:
        """The state of a parameter that had no step yet."""

    @abstractmethod
    def update(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        state: State,
        *,
        rate: float,
        decay: float,
        count: int,
    ) -> None:
        """Change `parameter` and `state` in place.

        Args:
            rate: the learning rate of this step.
            count: steps that the parameter has had, this one included.
        """

    @property
    def state_bytes(self) -> int:
        """See `Optimizer`."""
        total = 0
        for parameter, _ in self._parameters:
            tensors = self.fresh(torch.empty_like(parameter, device="meta")).values()
            total += sum(t.numel() * t.element_size() for t in tensors)
        return total

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """See `Optimizer`. A parameter without a gradient stays as it is."""
        learning_rate = self.config.peak_rate * rate
        for index, (parameter, decay) in enumerate(self._parameters):
            if parameter.grad is None:
                continue
            if not self._steps[index]:
                self._states[index] = self.fresh(parameter)
            self._steps[index] += 1
            self.update(
                parameter,
                parameter.grad,
                self._states[index],
                rate=learning_rate,
                decay=decay,
                count=self._steps[index],
            )

    def state_dict(self) -> dict[str, Any]:
        """Counts, and the tensors of each parameter in order."""
        return {"steps": list(self._steps), "states": [dict(state) for state in self._states]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take copies of what `state_dict` gave."""
        pairs = zip(self._parameters, state["states"], strict=True)
        self._states = [
            {name: tensor.to(p.device, copy=True) for name, tensor in saved.items()}
            for (p, _), saved in pairs
        ]
        self._steps = list(state["steps"])

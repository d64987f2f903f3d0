"""The loss scale of float16: as large as the gradients bear, found while training.

Source: Micikevicius et al. 2018, "Mixed precision training", arXiv 1710.03740, section 3.2.
"""

from __future__ import annotations

from typing import Any

_FIRST, _LARGEST = 2.0**16, 2.0**24
_GROW_AFTER = 1000  # steps without an overflow


class LossScale:
    """`value` multiplies the loss; a step whose gradients overflow is not taken and halves it."""

    def __init__(self, precision: str) -> None:
        self._moves = precision == "float16"
        self.value, self._since = (_FIRST if self._moves else 1.0), 0

    def accepts(self, grad_norm: float) -> bool:
        """Whether the step may be taken; only an overflow of a scaled loss says no."""
        if not self._moves:
            return True
        if grad_norm == grad_norm and grad_norm != float("inf"):
            self._since += 1
            if self._since >= _GROW_AFTER:
                self.value, self._since = min(_LARGEST, self.value * 2), 0
            return True
        self._since = 0
        if self.value <= 1.0:
            return True  # nothing left to lower: it is no overflow, and the trainer will say so
        self.value /= 2
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "since": self._since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self._since = state["value"], state["since"]

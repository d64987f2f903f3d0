"""The seam: a method turns a float matrix into rows of quantised blocks.

All methods write the same types, so what they make runs wherever the type does. They differ in
what they know of the matrix's inputs (`needs`): nothing, how large each input is, or how the inputs
go together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

from lmworks.core.errors import unknown_name
from lmworks.core.tables import load_target

if TYPE_CHECKING:
    from lmworks.compression.layer_inputs import LayerInputs
    from lmworks.models.model import Model

Needs = Literal["nothing", "sizes", "moments"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matrix:
    """What a method is given.

    Attributes:
        name: in the file, for errors.
        weight: (rows, n) float32, finite.
        inputs: what it is multiplied with; None where nothing is known of them, for example of the
            experts that no calibration text went to. A method then takes all inputs as equal.
        damping: how much the weights count beside the outputs; 0: the method's own.
    """

    name: str
    weight: np.ndarray
    inputs: LayerInputs | None = None
    damping: float = 0.0

    def output_error(self, change: np.ndarray) -> float:
        """The mean square of what `change` (rows, n) adds to an output, in all rows together."""
        if self.inputs is None:
            return float(np.einsum("ij,ij->", change, change, dtype=np.float64))
        if self.inputs.moment is None:
            weighted = change * self.inputs.mean_square
            return float(np.einsum("ij,ij->", change, weighted, dtype=np.float64))
        return float(np.einsum("ij,ij->", change @ self.inputs.moment, change, dtype=np.float64))


Round = Callable[[Matrix, str], np.ndarray]  # (matrix, type) -> uint8 (rows, bytes of a row)
Rescale = Callable[["Model", int, dict[str, "LayerInputs"], str], dict[str, "LayerInputs"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A line of the table.

    Attributes:
        round: lazy target of a `Round`.
        rescale: lazy target of a `Rescale`: (model, number of a layer, inputs by path, type) ->
            the inputs after channel scales were moved within that layer.
    """

    about: str
    needs: Needs
    round: str
    rescale: str = ""

    def rounding(self) -> Round:
        """The function that rounds a matrix."""
        found: Round = load_target(self.round)
        return found

    def rescaling(self) -> Rescale | None:
        """The function that looks at a layer first, if there is one."""
        return load_target(self.rescale) if self.rescale else None


_HERE = "lmworks.compression.methods"
METHODS = {
    "rtn": Method(
        about="round to nearest, as llama.cpp does without an importance matrix",
        needs="nothing",
        round=f"{_HERE}.rtn:round_to_nearest",
    ),
    "hqq": Method(
        about="scales and shifts for a norm that lets few weights be far off; needs no text",
        needs="nothing",
        round=f"{_HERE}.hqq:round_half_quadratic",
    ),
    "imatrix": Method(
        about="scales that suit the inputs that are large, as llama.cpp with an importance matrix",
        needs="sizes",
        round=f"{_HERE}.imatrix:round_by_importance",
    ),
    "awq": Method(
        about="channels with large inputs get finer steps: scales move into the layers before",
        needs="moments",
        round=f"{_HERE}.imatrix:round_by_importance",
        rescale=f"{_HERE}.awq:rescale_layer",
    ),
    "gptq": Method(
        about="later columns make up for what earlier ones missed",
        needs="moments",
        round=f"{_HERE}.gptq:round_with_feedback",
    ),
    "solve": Method(
        about="gptq's feedback, then codes, scales and shifts in turns; the best of these",
        needs="moments",
        round=f"{_HERE}.solve:solve_matrix",
    ),
}


def method(name: str) -> Method:
    """The method called `name`. Raises: UserError with the nearest known name."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]

"""Methods: all write what can be read, and each keeps its promise about the error."""

from __future__ import annotations

import numpy as np
import pytest

from lmworks.compression.layer_inputs import LayerInputs
from lmworks.compression.methods.base import METHODS, Matrix, method
from lmworks.core.errors import UserError
from lmworks.core.gguf import GGUFTensor, dequantize
from lmworks.core.quantizers import QUANTIZERS, quantize

ROUNDING = [name for name in METHODS if name != "awq"]  # what it adds is done before


def matrix(seed: int = 0, rows: int = 48, columns: int = 256, known: bool = True) -> Matrix:
    """Weights with a few large ones, for inputs of few directions and very different sizes."""
    random = np.random.default_rng(seed)
    weight = random.standard_t(4, (rows, columns)).astype(np.float32) * 0.02
    x = random.standard_normal((2000, 24)) @ random.standard_normal((24, columns))
    x = (x + 3 * random.standard_normal((2000, columns))) * np.exp(random.normal(0, 1, columns))
    moment = (x.T @ x / len(x)).astype(np.float32)
    inputs = LayerInputs(
        count=2000,
        mean_square=np.diag(moment).copy(),
        largest=np.abs(x).max(0).astype(np.float32),
        moment=moment,
    )
    return Matrix(name="w", weight=weight, inputs=inputs if known else None, damping=0.02)


def change(made: Matrix, kind: str, how: str) -> np.ndarray:
    raw = method(how).rounding()(made, kind)
    shape = made.weight.shape
    assert raw.dtype == np.uint8 and raw.shape[0] == shape[0]
    tensor = GGUFTensor(name="w", shape=shape, type=kind, data=raw.reshape(-1))
    return dequantize(tensor) - made.weight


@pytest.mark.parametrize("kind", sorted(QUANTIZERS))
def test_each_method_is_better_at_what_it_is_for(kind: str) -> None:
    made = matrix()
    errors = {name: made.output_error(change(made, kind, name)) for name in ROUNDING}
    assert errors["solve"] < 0.75 * errors["rtn"]
    assert errors["solve"] < 0.98 * min(errors["rtn"], errors["imatrix"], errors["gptq"])
    assert errors["gptq"] < 0.9 * errors["rtn"]
    assert errors["imatrix"] <= errors["rtn"] * 1.01
    if kind in ("Q4_0", "Q4_1", "Q5_0"):
        assert errors["imatrix"] < 0.97 * errors["rtn"]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K", "Q5_1"])
def test_hqq_lowers_the_norm_that_it_is_for(kind: str) -> None:
    made = matrix(known=False)
    missed = {n: (np.abs(change(made, kind, n)) ** 0.7).sum(1) for n in ("rtn", "hqq")}
    assert (missed["hqq"] <= missed["rtn"] + 1e-6).all()
    assert missed["hqq"].sum() < 0.9975 * missed["rtn"].sum()


@pytest.mark.parametrize("how", ROUNDING)
def test_nothing_known_and_nothing_there_are_no_errors(how: str) -> None:
    unknown = matrix(known=False)
    error = np.square(change(unknown, "Q4_0", how)).mean()
    plain = np.square(change(unknown, "Q4_0", "rtn")).mean()
    assert error <= 1.05 * plain
    inputs = LayerInputs(
        count=0,
        mean_square=np.zeros(32, np.float32),
        largest=np.zeros(32, np.float32),
        moment=np.zeros((32, 32), np.float32),
    )
    for weight in (np.zeros((3, 32), np.float32), np.full((3, 32), 0.1, np.float32)):
        made = Matrix(name="w", weight=weight, inputs=inputs)
        assert np.abs(change(made, "Q4_0", how)).max() < 0.02


def test_plain_rounding_is_that_of_ggml() -> None:
    made = matrix()
    assert np.array_equal(method("rtn").rounding()(made, "Q4_K"), quantize(made.weight, "Q4_K"))


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match="gptq"):
        method("gpqt")


@pytest.mark.parametrize("how", ROUNDING)
def test_what_is_no_number_is_refused(how: str) -> None:
    made = matrix(rows=4)
    made.weight[1, 3] = np.nan
    with pytest.raises(UserError, match="w holds NaN"):
        method(how).rounding()(made, "Q4_0")

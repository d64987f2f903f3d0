"""Record what ggml's rotary kernel makes of pairs (1, 0).

`python tests/models/record_rope_ggml.py` needs llama-cpp-python, whose libraries it calls through
ctypes. It writes `rope_ggml.json` beside this file: for each kind of scaling cosines and sines by
position and pair, times the factor.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np

DIM, POSITIONS = 64, [1, 7]
_F32, _I32, _NEOX = 0, 26, 2

# ggml's settings of each case of `test_rotary_tables_equal_those_of_ggml`.
CASES: dict[str, dict[str, Any]] = {
    "none": {"theta": 1e5},
    "linear": {"theta": 1e5, "scale": 1 / 4},
    "ntk": {"theta": 1e5 * 4 ** (DIM / (DIM - 2))},
    "yarn": {"theta": 1e5, "scale": 1 / 4, "extrapolation": 1.0, "original": 8192},
    "llama3": {"theta": 5e5, "factors": "llama3"},
    "longrope": {
        "theta": 1e4,
        "factors": np.linspace(1, 40, DIM // 2).tolist(),
        "factor": float(np.sqrt(1 + np.log(32) / np.log(4096))),
    },
}


class _Parameters(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


def rotate(
    *,
    theta: float,
    scale: float = 1.0,
    extrapolation: float = 0.0,
    factor: float = 1.0,
    original: int = 0,
    factors: Any = None,
) -> np.ndarray:
    """(positions, DIM): cosines, then sines."""
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    base, cpu = (
        ctypes.CDLL(str(folder / f"lib{name}.so"), mode=ctypes.RTLD_GLOBAL)
        for name in ("ggml-base", "ggml-cpu")
    )
    pointer, number, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    for name in ("init", "new_tensor_1d", "new_tensor_3d", "new_graph", "get_data", "rope_ext"):
        getattr(base, f"ggml_{name}").restype = pointer
    base.ggml_init.argtypes = [_Parameters]
    base.ggml_new_tensor_1d.argtypes = [pointer, number, ctypes.c_int64]
    base.ggml_new_tensor_3d.argtypes = [pointer, number, *[ctypes.c_int64] * 3]
    base.ggml_new_graph.argtypes = base.ggml_get_data.argtypes = [pointer]
    base.ggml_build_forward_expand.argtypes = [pointer, pointer]
    base.ggml_rope_ext.argtypes = [*[pointer] * 4, *[number] * 3, *[real] * 6]
    cpu.ggml_graph_compute_with_ctx.argtypes = [pointer, pointer, number]
    context = base.ggml_init(_Parameters(1 << 24, None, False))

    def put(tensor: int, values: np.ndarray) -> int:
        ctypes.memmove(base.ggml_get_data(tensor), values.ctypes.data, values.nbytes)
        return tensor

    pairs = np.zeros((len(POSITIONS), DIM), dtype=np.float32)
    pairs[:, : DIM // 2] = 1
    x = put(base.ggml_new_tensor_3d(context, _F32, DIM, 1, len(POSITIONS)), pairs)
    at = np.array(POSITIONS, dtype=np.int32)
    positions = put(base.ggml_new_tensor_1d(context, _I32, len(POSITIONS)), at)
    divisors = None
    if factors is not None:
        held = np.array(factors, dtype=np.float32)
        divisors = put(base.ggml_new_tensor_1d(context, _F32, DIM // 2), held)
    turned = base.ggml_rope_ext(
        context, x, positions, divisors, DIM, _NEOX, original,
        theta, scale, extrapolation, factor, 32.0, 1.0,
    )  # fmt: skip
    graph = base.ggml_new_graph(context)
    base.ggml_build_forward_expand(graph, turned)
    assert cpu.ggml_graph_compute_with_ctx(context, graph, 1) == 0
    ctypes.memmove(pairs.ctypes.data, base.ggml_get_data(turned), pairs.nbytes)
    return pairs


def main() -> None:
    from importlib.metadata import version

    from lmworks.models.architectures.rope import rope_extras
    from lmworks.models.config import Llama3Scaling, RoPEConfig

    rope = RoPEConfig(theta=5e5, scaling=Llama3Scaling(factor=32.0))
    (divisors,) = rope_extras(rope, DIM).values()
    known = CASES | {"llama3": {"theta": 5e5, "factors": divisors}}
    found = {name: rotate(**how).astype(float).round(8).tolist() for name, how in known.items()}
    told = {"llama-cpp-python": version("llama-cpp-python"), "positions": POSITIONS, **found}
    Path(__file__).with_name("rope_ggml.json").write_text(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()

"""llama.cpp's own quantiser through ctypes, with an importance matrix.

Run by `quantizing.py` in a Python that has llama-cpp-python (0.3.36 was used):

    python bench/llama_quantize.py MODEL.gguf OUT.gguf PRESET [IMPORTANCE.npz] [--pure]
"""

from __future__ import annotations

import ctypes
import sys

import llama_cpp
import numpy as np

PRESETS = {  # numbers of llama.h
    **{"Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7, "Q2_K": 10, "Q3_K_M": 12},
    **{"Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_M": 17, "IQ4_NL": 25, "IQ4_XS": 30},
}


def quantize(source: str, out: str, preset: str, importance: str = "", pure: bool = False) -> None:
    """Raises: RuntimeError if llama.cpp refuses."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread, settings.pure = PRESETS[preset], 2, pure
    kept = []  # what the settings point to
    if importance:
        held = np.load(importance)
        entries = (llama_cpp.llama_model_imatrix_data * (len(held.files) + 1))()
        for entry, name in zip(entries, held.files, strict=False):
            values = np.ascontiguousarray(held[name], dtype=np.float32)
            kept.append(values)
            entry.name = name.encode()
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.size = len(values)
        settings.imatrix = ctypes.cast(entries, type(settings.imatrix))
        kept.append(entries)
    code = llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(settings))
    if code != 0:
        raise RuntimeError(f"llama.cpp gave {code} for {source}")


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--pure"]
    quantize(*words[:4], pure="--pure" in sys.argv)

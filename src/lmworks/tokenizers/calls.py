"""Calling this room's kernels (kernels.py)."""

from __future__ import annotations

from typing import Any

from lmworks.core import compiled

MODULE = "lmworks.tokenizers.kernels"
COUNTING = "lmworks.tokenizers.counting_kernels"
TRAINING = "lmworks.tokenizers.training_kernels"


def kernel(name: str, *, module: str = MODULE) -> compiled.Kernel:
    """A kernel, to be called with the address of its arguments."""
    return compiled.kernel(module, name)


def call(name: str, *arguments: Any, module: str = MODULE) -> int:
    """Call a kernel once; arrays are passed by address."""
    import numpy as np

    numbers = [a.ctypes.data if isinstance(a, np.ndarray) else int(a) for a in arguments]
    packed = np.array(numbers, dtype=np.int64)
    return kernel(name, module=module)(int(packed.ctypes.data))


def ready() -> bool:
    """Whether the kernels can be loaded at once, without compiling."""
    return compiled.is_built(MODULE)

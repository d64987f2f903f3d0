"""Compiled kernels: numba functions, compiled once per machine and then loaded without numba.

A kernel is a function in a module of its own. It takes the address of an array of int64 (addresses
of other arrays, sizes, settings) and gives back an int64; it must not raise, allocate or touch a
Python object. numba compiles it the first time (seconds); the machine code is kept in the cache
folder under a name made of the source, the compiler's version and the processor. From then on it
is loaded through llvmlite alone, which takes some ten milliseconds, and called through ctypes,
which lets go of the GIL. A line `# kernels: one two` in the module names its kernels, and a line
`# uses: module` others whose source counts, so that nothing is imported to find them.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import importlib.util
import os
import platform
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmworks.core.files import atomic_open
from lmworks.core.folders import cache_folder
from lmworks.core.progress import say

Kernel = Callable[[int], int]  # address of the arguments -> what the kernel says
_LOCK = threading.Lock()
_ENGINES: list[Any] = []  # machine code lives as long as its engine


def is_built(module: str) -> bool:
    """Whether every kernel of a module can be loaded without compiling."""
    return all(_object_file(module, name).is_file() for name in _names(module))


def kernel(module: str, name: str) -> Kernel:
    """One kernel, ready to call. The first call on a machine compiles the module and says so."""
    with _LOCK:
        return _kernel(module, name)


def address(module: str, name: str) -> int:
    """Where a kernel lies in memory, for another one to call it."""
    with _LOCK:
        return _address(module, name)


@functools.cache
def _kernel(module: str, name: str) -> Kernel:
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(_address(module, name))


@functools.cache
def _address(module: str, name: str) -> int:
    path = _object_file(module, name)
    if not path.is_file():
        _build(module)
    return _load(path.read_bytes(), _symbol(module, name))


def _symbol(module: str, name: str) -> str:
    return f"lmworks_{module.rpartition('.')[2]}_{name}"


@functools.cache
def _source(module: str) -> Path:
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(module)
    return Path(found.origin)


@functools.cache
def _names(module: str) -> tuple[str, ...]:
    found = _listed(module, "# kernels: ")
    if not found:
        raise ValueError(f"{module} has no line '# kernels: ...'")
    return found


def _listed(module: str, mark: str) -> tuple[str, ...]:
    """What a comment in a module lists, read without importing numba."""
    lines = _source(module).read_text(encoding="utf-8").splitlines()
    return tuple(w for line in lines if line.startswith(mark) for w in line[len(mark) :].split())


@functools.cache
def _version(module: str) -> str:
    """What the machine code depends on."""
    import llvmlite

    modules = (module, *_listed(module, "# uses: "))
    parts = [_source(one).read_bytes() for one in modules] + [Path(__file__).read_bytes()]
    parts += [part.encode() for part in (llvmlite.__version__, platform.platform(), _processor())]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


@functools.cache
def _processor() -> str:
    llvm = _llvm()
    plain = os.environ.get("LMWORKS_PLAIN_KERNELS", "")
    return f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()} {plain}"


def has(*features: str) -> bool:
    """Whether this processor has all of LLVM's `features`, for kernels that are written for them.

    With LMWORKS_PLAIN_KERNELS=1 in the environment it has none, so that a machine can test what
    kernels do on another.
    """
    if os.environ.get("LMWORKS_PLAIN_KERNELS", "0") not in ("", "0"):
        return False
    found = _llvm().get_host_cpu_features()
    return all(found.get(feature, False) for feature in features)


def _object_file(module: str, name: str) -> Path:
    return cache_folder() / "kernels" / f"{_symbol(module, name)}-{_version(module)}.o"


@functools.cache
def _llvm() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


def _machine() -> Any:
    llvm = _llvm()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="pic",
        codemodel="jitdefault",
        jit=True,
    )


def _build(module: str) -> None:
    say(f"compiling {module} (once per machine)")
    for name in _names(module):
        machine_code = _machine().emit_object(_llvm().parse_assembly(_intermediate(module, name)))
        path = _object_file(module, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_open(path) as file:
            file.write(machine_code)


def _intermediate(module: str, name: str) -> str:
    """LLVM's text of a kernel, with an entry of a plain name and a plain signature."""
    import numba
    from numba import types

    function = getattr(importlib.import_module(module), name)
    options: Any = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "error_model": "numpy"}
    signature = types.int64(types.CPointer(types.int64))
    compiled: Any
    (compiled,) = numba.njit([signature], **options)(function).overloads.values()
    text = str(compiled.library.get_llvm_str())
    if "@NRT_" in text or "@Py" in text:
        raise RuntimeError(f"the kernel {name} allocates memory or touches Python objects")
    return text + _ENTRY.format(symbol=_symbol(module, name), inner=compiled.fndesc.llvm_func_name)


# numba's functions give a status back, which is always 0 here, and the result through a pointer.
_ENTRY = """
define i64 @{symbol}(ptr %arguments) {{
  %result = alloca i64
  %error = alloca ptr
  store i64 0, ptr %result
  %status = call i32 @{inner}(ptr %result, ptr %error, ptr %arguments)
  %value = load i64, ptr %result
  ret i64 %value
}}
"""


def _load(machine_code: bytes, symbol: str) -> int:
    llvm = _llvm()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(machine_code))
    engine.finalize_object()
    _ENGINES.append(engine)
    return int(engine.get_function_address(symbol))


def threads() -> int:
    """How many threads a batch is worth."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

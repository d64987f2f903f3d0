"""Side-by-side timing: contestants take turns, the median of each, ratios with their spread."""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path


def take_turns(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every round of every contestant; one unmeasured round comes first."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    for _ in range(rounds):
        for name, run in contestants.items():
            started = clock()
            run()
            seconds[name].append(clock() - started)
    return seconds


def report(
    claim: str, unit: str, work: float, seconds: Mapping[str, list[float]], **facts: object
) -> None:
    """Print rates and ratios to the first contestant, and keep them under bench/results."""
    rows = compared(unit, work, seconds)
    keep(claim, unit=unit, rows=rows, rounds=len(next(iter(seconds.values()))), **facts)


def compared(
    unit: str, work: float, seconds: Mapping[str, list[float]]
) -> dict[str, dict[str, float]]:
    """Rates, and ratios to the first contestant; they are printed too."""
    first = next(iter(seconds))
    rows = {}
    for name, times in seconds.items():
        ratios = sorted(a / b for a, b in zip(times, seconds[first], strict=True))
        rows[name] = {
            "median": work / statistics.median(times),
            "low": work / max(times),
            "high": work / min(times),
            "times_slower_than_first": statistics.median(ratios),
        }
        print(
            f"{name:28} {rows[name]['median']:10.1f} {unit} "
            f"[{rows[name]['low']:.1f} to {rows[name]['high']:.1f}]  "
            f"{rows[name]['times_slower_than_first']:.2f} x the time of {first}"
        )
    return rows


def keep(claim: str, **facts: object) -> None:
    """Write what was found under bench/results."""
    found = {
        "claim": claim,
        "command": " ".join(["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": platform.processor() or platform.machine(),
        "versions": {p: metadata.version(p) for p in ("torch", "transformers", "numpy", "numba")},
        **facts,
    }
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    stamp = time.strftime("%Y%m")
    path = folder / f"{claim}_{platform.machine()}_{stamp}.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(f"kept in {path.relative_to(Path(__file__).parent.parent)}")

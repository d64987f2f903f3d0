"""`lmworks doctor`: what this machine has, and what will be slow on it."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lmworks.ops.doctor import Facts

_GIB = 2**30


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The facts as JSON.")
def command(as_json: bool) -> None:
    """Show what this machine has, which extras are installed, and what will be slow, and why.

    Speeds are measured, which takes about a second.

    \b
    Examples:
      lmworks doctor
      lmworks doctor --json | jq .gemm_gflops
    """
    from lmworks.ops.doctor import facts

    found = facts()
    if as_json:
        told = dataclasses.asdict(found) | {"slow": found.slow()}
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    for name, value in _lines(found).items():
        click.echo(f"{name:<10}  {value}")
    slow = found.slow()
    click.echo("\nWhat will be slow here, and why" if slow else "\nNothing will be slow here.")
    for sentence in slow:
        click.echo(f"- {sentence}")


def _lines(found: Facts) -> dict[str, str]:
    memory = f"{found.memory_bytes / _GIB:.1f} GiB" if found.memory_bytes else "not told"
    features = ", ".join(found.cpu_features) or "no features told"
    lines = {
        "Python": f"{found.python}, {found.system}",
        "torch": found.torch or "missing",
        "CPU": f"{found.cpu}; {found.cores} usable cores; {features}",
        "GPU": found.gpu or "none",
        "memory": memory,
        "disk": f"{found.free_disk_bytes / _GIB:.1f} GiB free here",
        "speed": f"{found.gemm_gflops:,.0f} GFLOP/s float32 matrix product, "
        f"{found.copy_gb_per_s:,.1f} GB/s copy (measured)",
        "hub": "reachable" if found.hub_reachable else "not reachable",
        "pip": "there" if found.pip else "missing",
        "browser": found.browser or "none found",
    }
    for extra in found.extras:
        lines[f"[{extra.name}]"] = (
            f"missing {', '.join(extra.missing)}: {extra.install}" if extra.missing else "installed"
        )
    return lines

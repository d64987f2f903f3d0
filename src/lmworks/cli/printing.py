"""What commands print: the resolved config before, the artifact after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lmworks.core.config import to_mapping
from lmworks.core.stages import Artifact


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `a.b: value`."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def print_config(stage: str, config: Any, out: str) -> None:
    """The whole config, defaults included, on standard error."""
    click.echo(f"{stage} -> {out}", err=True)
    for key, value in flat(to_mapping(config)).items():
        if value != "":
            click.echo(f"  {key} = {value}", err=True)


def print_artifact(artifact: Artifact) -> None:
    """Where it is and its figures, on standard output."""
    state = "already there, unchanged" if artifact.cached else "made"
    click.echo(f"{artifact.path}  ({artifact.kind}, {state})")
    print_metrics(artifact.metrics)


def print_metrics(metrics: dict[str, Any]) -> None:
    """Figures as `name  value` lines; floats to four places."""
    for key, value in flat(metrics).items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        click.echo(f"  {key}  {shown}")


def reference_name(reference: str) -> str:
    """What a model is called on the API and on screen: its alias, or its folder or file."""
    if "#" in reference:
        return reference.rpartition("#")[2]
    path = Path(reference)
    return (path.stem if path.suffix == ".gguf" else path.name) or reference

"""`lmworks show FOLDER`: an artifact's lineage."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...")
@click.option("--json", "as_json", is_flag=True, help="The manifest as it is.")
@click.option(
    "--html",
    metavar="FILE",
    help="Of trainings: their curves and events, of a tuning what it timed, as a page of one file.",
)
def command(folders: tuple[str, ...], as_json: bool, html: str | None) -> None:
    """What made the artifact in FOLDER, from what, with which settings and figures.

    \b
    Examples:
      lmworks show lmworks-quickstart/base
      lmworks show runs/chat --json
      lmworks show runs/base runs/wider --html curves.html
    """
    if html:
        _write_page(folders, Path(html))
        click.echo(html)
        return
    for folder in folders:
        _show(folder, as_json)


def _write_page(folders: tuple[str, ...], out: Path) -> None:
    from lmworks.core.stages import Artifact
    from lmworks.evaluation.training_page import write_training_page
    from lmworks.evaluation.tuning_page import write_tuning_page

    if len(folders) == 1 and Artifact.load(folders[0]).kind == "tuning":
        write_tuning_page(folders[0], out)
    else:
        write_training_page(folders, out)


def _show(folder: str, as_json: bool) -> None:
    from lmworks.cli.printing import flat, print_metrics
    from lmworks.core.progress import duration
    from lmworks.core.stages import Artifact

    artifact = Artifact.load(folder)
    manifest = artifact.manifest
    if as_json:
        click.echo(json.dumps(manifest, indent=2, ensure_ascii=False))
        return
    click.echo(f"{folder}: a {artifact.kind} made by {manifest['stage']}, {manifest['finished']}")
    took, most = duration(manifest["seconds"]), manifest["peak_memory_bytes"] / 2**20
    click.echo(f"  {took}, at most {most:.0f} MiB, sha256 {manifest['sha256'][:16]}")
    for name, entry in manifest["inputs"].items():
        click.echo(f"  from {name} {entry['reference']}  (sha256 {entry['sha256'][:16]})")
    click.echo("settings")
    for key, value in flat(manifest["config"]).items():
        click.echo(f"  {key} = {value}")
    click.echo("figures")
    print_metrics(manifest["metrics"])

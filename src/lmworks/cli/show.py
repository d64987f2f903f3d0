"""`lmworks show FOLDER`: an artifact's lineage."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("folder")
@click.option("--json", "as_json", is_flag=True, help="The manifest as it is.")
def command(folder: str, as_json: bool) -> None:
    """What made the artifact in FOLDER, from what, with which settings and figures.

    \b
    Examples:
      lmworks show lmworks-quickstart/base
      lmworks show runs/chat --json
    """
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

"""`lmworks systems`: what lmworks is made for, and how far each part is."""

from __future__ import annotations

import dataclasses
import json

import click


@click.command()
@click.option("--chapter", metavar="N", help="Only this chapter, by number or name.")
@click.option("--json", "as_json", is_flag=True, help="A list of objects, one per system.")
@click.option("--markdown", is_flag=True, help="The page docs/systems.md.")
def command(chapter: str | None, as_json: bool, markdown: bool) -> None:
    """List the 88 systems, each with its state and the commands that are true today.

    \b
    Examples:
      lmworks systems
      lmworks systems --chapter 15
      lmworks systems --json | jq '.[] | select(.state == "partial") | .system'
    """
    from lmworks.ops.systems import chapters, counts, load_systems, of_chapter, to_markdown

    rows = of_chapter(chapter) if chapter else load_systems()
    if as_json:
        listed = [dataclasses.asdict(row) for row in rows]
        click.echo(json.dumps(listed, indent=2, ensure_ascii=False))
        return
    if markdown:
        click.echo(to_markdown(rows), nl=False)
        return
    for title, members in chapters(rows).items():
        click.echo(title)
        for row in members:
            click.echo(f"  {row.state:<8} {row.system:<34} {row.command or row.api}".rstrip())
    told = ", ".join(f"{number} {state}" for state, number in counts(rows).items())
    click.echo(f"{len(rows)} systems: {told}")

"""`lmworks model merge`: the stage's command, which takes mergekit's YAML as an argument too."""

from __future__ import annotations

from typing import Any

import click

from lmworks.cli.stage_command import stage_command
from lmworks.core.errors import UserError
from lmworks.models.merging.stage import merge


def _with_file(made: click.Command) -> click.Command:
    """`made`, with `--recipe FILE` as an argument that may be left out."""
    inner = made.callback
    assert inner is not None

    def run(file: str | None, recipe: str | None, **given: Any) -> Any:
        if file and recipe:
            raise UserError("give the recipe once: as FILE or with --recipe")
        return inner(recipe=file or recipe, **given)

    made.params.insert(0, click.Argument(["file"], required=False, metavar="[FILE]"))
    made.callback = run
    return made


command = _with_file(
    stage_command(
        "merge", merge, "Merge models into one, tensor by tensor: mergekit's YAML or flags."
    )
)

"""`lmworks train tune`: the stage's command, and a page of what was timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lmworks.cli.stage_command import stage_command
from lmworks.training.tune import tune

_LINE = "Find rows at a time, threads and the like with which a pre-training is fastest."
command = stage_command("tune", tune, _LINE)
_tune = command.callback


def _run(html: str | None, **given: Any) -> None:
    assert _tune is not None
    _tune(**given)
    if html and not given["dry_run"]:
        from lmworks.evaluation.tuning_page import write_tuning_page

        write_tuning_page(given["out"], Path(html))
        click.echo(html)


command.callback = _run
command.params.append(
    click.Option(["--html"], metavar="FILE", help="Write what was timed as a page of one file.")
)

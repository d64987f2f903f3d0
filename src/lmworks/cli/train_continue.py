"""`lmworks train continue`: rounds in a state folder, the model of the last good one served."""

from __future__ import annotations

from typing import Any

import click

from lmworks.cli.printing import print_config
from lmworks.cli.stage_command import build_config, config_options, help_text, settings_options
from lmworks.core.errors import UserError
from lmworks.evaluation.continual.round import ContinualRoundConfig

_HIDDEN = ("previous",)


def _run(
    state: str,
    serve_round: int | None,
    show: bool,
    server: str,
    served_as: tuple[str, ...],
    sets: tuple[str, ...],
    recipe: str | None,
    dry_run: bool,
    **given: Any,
) -> None:
    from lmworks.evaluation.continual.state import ContinualState

    if served_as and not server:
        raise UserError("--served-as names a model of a server: give --server too")
    folder = ContinualState(state)
    if show:
        _print_rounds(folder)
        return
    if serve_round is not None:
        folder.serve(serve_round)
        click.echo(f"{folder.current} is the model of round {serve_round}")
        _reload(server, served_as)
        return
    config = build_config(ContinualRoundConfig, recipe, given, sets)
    print_config("continual_round", config, state)
    if dry_run:
        return
    known = {done.number for done in folder.rounds()}
    done = folder.learn(config)
    click.echo((done.artifact.path / "gates.md").read_text(encoding="utf-8"))
    if done.number in known:
        click.echo(f"round {done.number} learnt this already: nothing to do")
    elif done.promoted:
        click.echo(f"promoted: {folder.current} is the model of round {done.number}")
        _reload(server, served_as)
    else:
        reasons = "; ".join(done.artifact.metrics["shut"])
        click.echo(f"not promoted, the model stays as it was: {reasons}")


def _print_rounds(folder: Any) -> None:
    from lmworks.evaluation.continual.state import described

    rounds = described(folder.rounds())
    if not rounds:
        raise UserError(f"{folder.folder} has no round yet")
    for entry in rounds:
        mark = "*" if entry["served"] else " "
        verdict = "promoted" if entry["promoted"] else "rejected: " + "; ".join(entry["shut"])
        click.echo(f"{mark} {entry['round']:4d}  {entry['finished']}  {entry['task']}  {verdict}")


def _reload(server: str, names: tuple[str, ...]) -> None:
    """Make a running server load the model anew, under each of its names there."""
    from lmworks.cli.models import ask_server

    for name in names:
        for step in ("unload", "load"):
            ask_server(server, "POST", f"/v1/models/{step}", {"model": name})
        click.echo(f"{server} serves it as {name}")


class _Help:
    """Learn task after task; a model is served only once it passed its gates.

    Each call is a round: the task is learnt with earlier ones held on to, then the candidate and
    the model that is served are compared on held-out rows of every task so far. Only if the new
    task is shown better and no earlier one worse than the tolerance, STATE/current becomes the
    candidate. Rows of earlier tasks, what is measured and why a round failed stay in STATE/rounds.

    Examples:
        lmworks train continue --state runs/assistant --model smollm2-135m \\
            --general runs/wiki --task runs/law
        lmworks data feedback --out runs/feedback
        lmworks train continue --state runs/assistant --task runs/feedback --name feedback \\
            --server http://127.0.0.1:8000 --served-as assistant
        lmworks train continue --state runs/assistant --show
        lmworks train continue --state runs/assistant --serve-round 1
    """


command = click.Command(
    "continue",
    params=[
        click.Option(
            ["--state"], required=True, metavar="DIR", help="Folder of the rounds. (required)"
        ),
        *(o for o in config_options(ContinualRoundConfig) if o.name not in _HIDDEN),
        click.Option(["--show"], is_flag=True, help="Print the rounds so far and stop."),
        click.Option(
            ["--serve-round"], type=int, metavar="N", help="Go back to round N's model and stop."
        ),
        click.Option(["--server"], default="", metavar="URL", help="A server that has the model."),
        click.Option(
            ["--served-as"], multiple=True, metavar="NAME",
            help="Its name there: it is loaded anew once promoted. May be repeated.",
        ),
        *settings_options(),
    ],
    callback=_run,
    help=help_text(_Help),
    short_help="Learn task after task, and serve only what passed its gates.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)  # fmt: skip

"""`lmworks quickstart [FOLDER]`: everything, then the server."""

from __future__ import annotations

import click

from lmworks.cli.stage_command import help_text
from lmworks.ops.quickstart import QuickstartConfig


@click.command(help=help_text(QuickstartConfig))
@click.argument("folder", default="", required=False)
@click.option("--budget", default="5m", show_default=True, help="Time for all of it: 90s, 5m, 1h.")
@click.option("--out", default="lmworks-quickstart", show_default=True, help="Folder to fill.")
@click.option("--seed", default=0, show_default=True, help="Same seed and plan, same bytes.")
@click.option("--serve/--no-serve", default=True, help="Serve the models when the report is done.")
@click.option("--port", default=8000, show_default=True, help="Port of the server.")
@click.option("--open/--no-open", "open_page", default=True, help="Open the chat page.")
def command(
    folder: str, budget: str, out: str, seed: int, serve: bool, port: int, open_page: bool
) -> None:
    """See QuickstartConfig."""
    from lmworks.ops.quickstart import run_quickstart, serve_quickstart, told_next

    config = QuickstartConfig(folder=folder, budget=budget, out=out, seed=seed)
    report = run_quickstart(config)
    click.echo(f"report: {report.path / 'report.html'}")
    for line in told_next(report):
        click.echo(line)
    if serve:
        serve_quickstart(config, port=port, open_page=open_page)

"""`lmworks model parity A B`: the first operation in which two models differ, and why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lmworks.models.parity.report import Operation, Report

_COLOURS = {"equal": "green", "noise": "green", "differs": "red"}


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--text", default="", help="What both read; a built-in text by default.")
@click.option("--length", type=click.IntRange(min=1), help="Tokens; by default 24, or enough to "
              "leave a sliding window.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of token ids drawn without tokenizer.")
@click.option("--all", "show_all", is_flag=True, help="Show all operations, equal or later ones.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    a: str, b: str, text: str, length: int | None, seed: int, show_all: bool, as_json: bool
) -> None:
    """Run A and B on the same tokens and name the first operation that differs, and why.

    A and B are references to weights; `transformers:REF` is the same weights run by transformers,
    and a GGUF file that ends in `:packed` is computed with as it is. The exit status is 0 if no
    operation differs and 1 if one does.

    \b
    Examples:
      lmworks model parity smollm2-135m runs/port
      lmworks model parity ./llama transformers:./llama
      lmworks model parity ./llama ./llama-f16.gguf --all
    """
    from lmworks.models.parity.compare import compare

    report = compare(a, b, text=text, length=length or 0, seed=seed)
    if as_json:
        click.echo(json.dumps(report.as_dict(), ensure_ascii=False, indent=1))
    else:
        _print(report, show_all)
    click.get_current_context().exit(0 if report.equal else 1)


def _print(report: Report, show_all: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{report.a} (a) against {report.b} (b), {len(report.tokens)} tokens"
    table = Table(title=title, title_justify="left")
    for name in ("operation", "status", "largest", "relative", "cosine", "where, a against b"):
        right = name in ("largest", "relative", "cosine")
        table.add_column(name, justify="right" if right else "left", no_wrap=name[0] != "w")
    for operation in _shown(report, show_all):
        if operation is None:
            table.add_row("...", "[green]equal[/]")
        else:
            table.add_row(*_cells(operation))
    Console(soft_wrap=True).print(table)
    for fact in report.facts:
        click.echo(f"  {fact}")
    click.echo(report.verdict)


def _shown(report: Report, show_all: bool) -> list[Operation | None]:
    """The operations around the first that differs; None stands for a run of equal ones."""
    operations = list(report.operations)
    first = next((i for i, o in enumerate(operations) if o.status == "differs"), None)
    if show_all:
        return [*operations]
    if first is None:
        return [operations[0], None, *operations[-3:]] if len(operations) > 6 else [*operations]
    start = max(0, first - 3)
    skipped: list[Operation | None] = [operations[0], None] if start > 1 else [*operations[:start]]
    return [*skipped, *operations[start : first + 4]]


def _cells(operation: Operation) -> list[str]:
    found = operation.difference
    status = f"[{_COLOURS[operation.status]}]{operation.status}[/]"
    if found.problem:
        return [operation.name, status, "", "", "", found.problem]
    values = f"{found.values[0]:.4g} against {found.values[1]:.4g}"
    where = f"{operation.where}: {values}" if operation.status == "differs" else ""
    numbers = [f"{found.largest:.2g}", f"{found.relative:.2g}", f"{found.cosine:.6f}"]
    return [operation.name, status, *numbers, where]

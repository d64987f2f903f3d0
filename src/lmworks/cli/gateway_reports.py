"""`lmworks gateway usage|log|audit`: what was used, by whom, and what admins did."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import click

from lmworks.cli.gateway_keys import config_option, in_office

_COUNTS = (
    "requests",
    "errors",
    "cache_hits",
    "prompt_tokens",
    "completion_tokens",
    "nano",
)
_COLUMNS = ("key", "model", "day", "backend")


@click.command()
@config_option
@click.option("--days", default=30, show_default=True, type=click.IntRange(1, 3660))
@click.option(
    "--by",
    default="key,model",
    show_default=True,
    metavar="COLUMNS",
    help="One row for each of these: key, model, day, backend.",
)
@click.option("--json", "as_json", is_flag=True, help="A list of objects.")
def usage(config: str, days: int, by: str, as_json: bool) -> None:
    """Requests, tokens and money by key, model, day or back end.

    \b
    Examples:
      lmworks gateway usage
      lmworks gateway usage --by day,model --days 7
    """
    from lmworks.core.errors import unknown_name

    columns = [name.strip() for name in by.split(",") if name.strip()]
    for name in columns:
        if name not in _COLUMNS:
            raise unknown_name("column", name, _COLUMNS)
    rows = _summed(in_office(config, lambda office: office.usage(days)), columns)
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if not rows:
        click.echo(f"nothing was used in {days} days")
        return
    titles = [*columns, "requests", "errors", "cached", "prompt", "completion", "cost"]
    table = [[str(row[name]) for name in (*columns, *_COUNTS[:-1], "cost")] for row in rows]
    _print_table(titles, table, left=len(columns))


def _summed(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    sums: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        named = {**row, "key": row["key"] or row["key_id"]}
        place = tuple(str(named[name]) for name in columns)
        total = sums.setdefault(place, {**dict(zip(columns, place)), **dict.fromkeys(_COUNTS, 0)})
        for name in _COUNTS:
            total[name] += row[name]
    for total in sums.values():
        total["cost"] = round(total.pop("nano") / 1e9, 6)
    return [sums[place] for place in sorted(sums)]


def _print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
    widths = [max(len(text) for text in column) for column in zip(titles, *rows)]
    for row in (titles, *rows):
        cells = [
            text.ljust(width) if at < left else text.rjust(width)
            for at, (text, width) in enumerate(zip(row, widths))
        ]
        click.echo("  ".join(cells).rstrip())


@click.command()
@config_option
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--json", "as_json", is_flag=True, help="One object a line, the newest first.")
def log(config: str, limit: int, as_json: bool) -> None:
    """The newest requests: who, what, which back end, how long, and what went wrong."""

    async def newest(office: Any) -> Any:
        return office.requests(limit)

    for row in in_office(config, newest):
        if as_json:
            click.echo(json.dumps(row, ensure_ascii=False))
            continue
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(row["time_s"]))
        told = (
            f"{when}  {row['key_id']}  {row['status']}  {row['model']} <- {row['backend'] or '-'}"
        )
        told += (
            f"  {row['seconds']:.3f} s  {row['prompt_tokens']}+{row['completion_tokens']} tokens"
        )
        parts = [row["cache"], f"{row['tries']} tries" if row["tries"] > 1 else "", row["error"]]
        click.echo("  ".join([told, *(part for part in parts if part)]))


@click.group()
def audit() -> None:
    """The log of what admins did, chained by hashes so that a change of the past shows."""


@audit.command(name="list")
@config_option
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000))
def list_entries(config: str, limit: int) -> None:
    """The newest entries, the newest last."""

    async def entries(office: Any) -> Any:
        return office.audit_entries()

    for entry in in_office(config, entries)[-limit:]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry.time_s))
        details = json.dumps(entry.details, ensure_ascii=False)
        click.echo(f"{entry.number}  {when}  {entry.actor}  {entry.action}  {details}")


@audit.command()
@config_option
@click.option("--head", default="", metavar="HASH", help="What an earlier check printed.")
def verify(config: str, head: str) -> None:
    """Check that no entry was changed, removed or put in.

    Keep the head that is printed somewhere else; given with --head, a log that was cut off at its
    end shows too.
    """
    from lmworks.core.errors import UserError

    async def check(office: Any) -> Any:
        return office.verify_audit(head)

    verdict = in_office(config, check)
    if verdict.fault:
        raise UserError(f"the audit log is not whole: {verdict.fault}")
    click.echo(f"{verdict.entries} entries, none changed; head {verdict.head}")

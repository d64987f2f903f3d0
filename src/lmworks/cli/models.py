"""`lmworks models list|load|unload`: what a running server has in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from lmworks.core.errors import UserError
from lmworks.core.quantities import shown_bytes

_server = click.option(
    "--server", default="http://127.0.0.1:8000", show_default=True, metavar="URL",
    help="Where the server answers.",
)  # fmt: skip


@click.command()
@_server
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_command(server: str, as_json: bool) -> None:
    """The models of a server: state, memory, context, and tokens per second as measured there.

    \b
    Examples:
      lmworks models list
      lmworks models list --server http://127.0.0.1:9000 --json
    """
    models = ask_server(server, "GET", "/v1/models", None)["data"]
    if as_json:
        click.echo(json.dumps(models, indent=2))
        return
    rows = [("NAME", "KIND", "STATE", "MEMORY", "CONTEXT", "TOKENS/S"), *map(_row, models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


@click.command()
@click.argument("name")
@_server
def load_command(name: str, server: str) -> None:
    """Load the model called NAME, sending away what was idle longest where room is needed.

    \b
    Examples:
      lmworks models load minilm
    """
    click.echo("  ".join(_row(ask_server(server, "POST", "/v1/models/load", {"model": name}))))


@click.command()
@click.argument("name")
@_server
def unload_command(name: str, server: str) -> None:
    """Unload the model called NAME once the answers under way have ended.

    \b
    Examples:
      lmworks models unload minilm
    """
    click.echo("  ".join(_row(ask_server(server, "POST", "/v1/models/unload", {"model": name}))))


def _row(model: Mapping[str, Any]) -> tuple[str, ...]:
    size, context, speed = (model.get(key) for key in ("bytes", "context", "tokens_per_s"))
    name = model["id"] + (f" (on {model['parent']})" if model.get("parent") else "")
    return (
        name,
        str(model.get("kind") or "-"),
        str(model.get("state") or "ready") + (", pinned" if model.get("pinned") else ""),
        "-" if size is None else shown_bytes(size),
        "-" if context is None else str(context),
        "-" if speed is None else str(speed),
    )


def ask_server(server: str, method: str, path: str, body: Any) -> Any:
    import os

    import httpx

    key = os.environ.get("LMWORKS_API_KEY")  # of a gateway before the server
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = server.rstrip("/").removesuffix("/v1") + path
    try:
        # Loading may take minutes, and says nothing meanwhile.
        wait = httpx.Timeout(10, read=600)
        answer = httpx.request(method, url, json=body, headers=headers, timeout=wait)
    except httpx.InvalidURL as error:
        raise UserError(f"--server {server}: {error}") from None
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"no server answers at {server} ({reason}): start `lmworks serve`"
        ) from None
    try:
        found = answer.json()
    except ValueError:
        raise UserError(
            f"{url} answers {answer.status_code} without JSON: no such server"
        ) from None
    if answer.is_success:
        return found
    told = found.get("error") if isinstance(found, dict) else None
    message = told.get("message") if isinstance(told, dict) else None
    raise UserError(message or f"{url} answers {answer.status_code}")

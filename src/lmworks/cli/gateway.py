"""`lmworks gateway serve|init|check`: the door itself."""

from __future__ import annotations

from pathlib import Path

import click

DEFAULT_CONFIG = "gateway.yaml"


@click.command()
@click.argument("config", default=DEFAULT_CONFIG, metavar="[CONFIG]")
@click.option("--host", default="", help="Address to listen on, instead of the config's.")
@click.option("--port", type=int, help="Port, instead of the config's; 0 takes a free one.")
def serve(config: str, host: str, port: int | None) -> None:
    """One OpenAI-compatible door to the back ends in CONFIG, until Ctrl-C.

    Clients need a key: `lmworks gateway keys create NAME`.

    \b
    Examples:
      lmworks gateway init && lmworks gateway serve
      lmworks gateway serve /etc/lmworks/gateway.yaml --host 0.0.0.0
    """
    from lmworks.serving.gateway.config import load_config
    from lmworks.serving.gateway.run import serve_gateway

    serve_gateway(load_config(config), host, port)


@click.command()
@click.argument("config", default=DEFAULT_CONFIG, metavar="[CONFIG]")
def init(config: str) -> None:
    """Write a commented example to CONFIG; a file that is there stays as it is."""
    from lmworks.core.errors import UserError
    from lmworks.core.files import write_text
    from lmworks.serving.gateway.config import EXAMPLE

    if Path(config).exists():
        raise UserError(f"{config} is there already: name another file")
    write_text(config, EXAMPLE.read_text(encoding="utf-8"))
    click.echo(f"wrote {config}: edit it, then `lmworks gateway check {config}`")


@click.command()
@click.argument("config", default=DEFAULT_CONFIG, metavar="[CONFIG]")
@click.option("--ask", is_flag=True, help="Also ask every back end for its models.")
def check(config: str, ask: bool) -> None:
    """Check CONFIG without starting anything; say what it would do.

    \b
    Examples:
      lmworks gateway check
      lmworks gateway check --ask
    """
    from lmworks.serving.gateway.config import load_config

    gateway = load_config(config)
    for name, model in gateway.models.items():
        routes = ", ".join(f"{r.backend}/{r.model} x{r.weight:g}" for r in model.routes)
        then = f"; then {', '.join(model.fallbacks)}" if model.fallbacks else ""
        click.echo(f"{name}  {model.strategy}: {routes}{then}")
    if ask:
        _ask(gateway)
    click.echo(f"{config} is in order")


def _ask(gateway: object) -> None:
    import asyncio

    from lmworks.core.errors import UserError
    from lmworks.serving.gateway.reach import unreachable

    if faults := asyncio.run(unreachable(gateway)):  # type: ignore[arg-type]
        raise UserError("; ".join(faults))

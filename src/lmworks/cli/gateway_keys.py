"""`lmworks gateway keys`: make, list, change, rotate and revoke the keys of a gateway."""

from __future__ import annotations

import asyncio
import getpass
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click

from lmworks.cli.gateway import DEFAULT_CONFIG

T = TypeVar("T")
_LIMITS = (
    ("requests-per-minute", float),
    ("tokens-per-minute", float),
    ("burst", int),
    ("requests-per-day", int),
    ("requests-per-month", int),
    ("tokens-per-day", int),
    ("tokens-per-month", int),
    ("budget-per-day", float),
    ("budget-per-month", float),
)


def config_option(function: Any) -> Any:
    """`--config`, for all commands on a gateway's store."""
    return click.option(
        "--config",
        "-c",
        default=DEFAULT_CONFIG,
        show_default=True,
        metavar="FILE",
        help="The gateway's config.",
    )(function)


def limit_options(function: Any) -> Any:
    """One option per limit."""
    for name, kind in reversed(_LIMITS):
        words = name.replace("-", " ")
        about = (
            "Requests at once; by default those of a minute."
            if name == "burst"
            else (
                f"At most so many {words}."
                if not name.startswith("budget")
                else f"At most so much money{words.removeprefix('budget')}."
            )
        )
        function = click.option(f"--{name}", type=kind, metavar="N", help=about)(function)
    return function


def in_office(config: str, work: Callable[[Any], Awaitable[T]]) -> T:
    """Run `work` on the keys, usage and logs that a config leads to."""
    from lmworks.serving.gateway.config import load_config
    from lmworks.serving.gateway.run import open_office

    with open_office(load_config(config)) as office:

        async def run() -> T:
            try:
                return await work(office)
            finally:
                await office.close()

        return asyncio.run(run())


def _actor() -> str:
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user without a name
        return "cli"


@click.group()
def command() -> None:
    """Keys of a gateway's clients. A key is shown once, when it is made; a hash of it is kept."""


@command.command()
@click.argument("name")
@config_option
@limit_options
@click.option("--model", "models", multiple=True, help="A model that it may use; repeat; else all.")
@click.option("--days", type=float, default=0, help="For how many days it is good; 0: for ever.")
@click.option("--admin", is_flag=True, help="A key for the admin API, which may use no model.")
def create(
    name: str, config: str, models: tuple[str, ...], days: float, admin: bool, **limits: Any
) -> None:
    """Make a key called NAME and print it. Limits that are not given are the config's defaults.

    \b
    Examples:
      lmworks gateway keys create alice
      lmworks gateway keys create batch --tokens-per-day 1000000 --budget-per-month 20 --model chat
    """
    given = {key: value for key, value in limits.items() if value is not None}

    async def make(office: Any) -> Any:
        return await office.create(
            _actor(), name=name, limits=given, models=models, days=days, admin=admin
        )

    text, key = in_office(config, make)
    click.echo(text)
    click.echo(f"the key {key.id} of {key.name!r}: it is not shown again", err=True)


@command.command(name="list")
@config_option
@click.option("--json", "as_json", is_flag=True, help="A list of objects.")
def list_keys(config: str, as_json: bool) -> None:
    """All keys, with their limits; never the keys themselves."""
    keys = in_office(config, lambda office: office.keys())
    if as_json:
        click.echo(json.dumps([key.plain() for key in keys], indent=2, ensure_ascii=False))
        return
    for key in keys:
        limits = ", ".join(f"{n.replace('_', ' ')} {v:g}" for n, v in key.limits.plain().items())
        models = "admin" if key.admin else ", ".join(key.models) or "all models"
        told = f"{key.id}  {key.name:<20} {key.state(time.time()):<8} {models}"
        click.echo(f"{told}; {limits}" if limits else told)


@command.command()
@click.argument("key")
@config_option
@limit_options
@click.option("--model", "models", multiple=True, help="The models that it may use, anew; repeat.")
@click.option("--unlimited", multiple=True, metavar="LIMIT", help="Take a limit of its own away.")
def change(
    key: str, config: str, models: tuple[str, ...], unlimited: tuple[str, ...], **limits: Any
) -> None:
    """Change what KEY (an id, or a name) may use; the rest stays.

    \b
    Examples:
      lmworks gateway keys change alice --tokens-per-day 500000
      lmworks gateway keys change alice --unlimited tokens-per-day
    """
    given = {name: value for name, value in limits.items() if value is not None}
    given |= {name.replace("-", "_"): None for name in unlimited}

    async def alter(office: Any) -> Any:
        return await office.change(_actor(), key, limits=given or None, models=models or None)

    changed = in_office(config, alter)
    click.echo(f"the key {changed.id} of {changed.name!r} was changed")


@command.command()
@click.argument("key")
@config_option
def rotate(key: str, config: str) -> None:
    """Give KEY (an id, or a name) another secret and print it; the old one ends at once."""
    text, kept = in_office(config, lambda office: office.rotate(_actor(), key))
    click.echo(text)
    click.echo(f"the key {kept.id} of {kept.name!r}: it is not shown again", err=True)


@command.command()
@click.argument("key")
@config_option
def revoke(key: str, config: str) -> None:
    """End KEY (an id, or a name), from the next request on."""
    kept = in_office(config, lambda office: office.revoke(_actor(), key))
    click.echo(f"the key {kept.id} of {kept.name!r} was revoked")

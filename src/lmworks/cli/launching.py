"""`--launch` on commands that train: the same command, started as many processes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import click

from lmworks.core.config import from_mapping, merge, options, parse_set, to_mapping
from lmworks.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class LaunchFlags:
    """What the command line says of a launch."""

    kind: str
    settings: dict[str, Any]

    def start(
        self, words: list[str], config: Any, out: str, *, replace: bool, dry_run: bool
    ) -> int:
        """Write the settings of the run and start it; the exit status."""
        import yaml

        from lmworks.training.distributed.launch import Command, LaunchConfig, launch

        command = Command(
            words=tuple(words),
            settings=yaml.safe_dump(to_mapping(config), sort_keys=False),
            out=out,
            flags=("--replace",) if replace else (),
        )
        settings = from_mapping(LaunchConfig, self.settings, where="launch")
        return launch(self.kind, command, settings, dry_run=dry_run)


def launch_options() -> list[click.Option]:
    """The flags; everything else of a launch goes through --launch-set."""
    from lmworks.training.distributed.launch import LAUNCHERS, LaunchConfig

    names = ", ".join(
        item.name for item in options(LaunchConfig) if item.name not in ("nproc", "nodes")
    )
    return [
        click.Option(
            ["--launch", "launcher"],
            type=click.Choice(LAUNCHERS),
            help="Run as many processes: here (torchrun), or write a job for a cluster and start "
            "it where sbatch or kubectl is. The plan is --set loop.parallel.tensor=2 and the like.",
        ),
        click.Option(
            ["--nproc"], type=int, metavar="INT", help="Processes on each machine, with --launch."
        ),
        click.Option(["--nodes"], type=int, metavar="INT", help="Machines, with --launch."),
        click.Option(
            ["--launch-set", "launch_sets"],
            multiple=True,
            metavar="KEY=VALUE",
            help=f"A setting of the launch: {names}. May be repeated.",
        ),
    ]


def with_launch(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` with these flags gathered into `launch`."""

    @functools.wraps(run)
    def wrapped(
        launcher: str | None,
        nproc: int | None,
        nodes: int | None,
        launch_sets: tuple[str, ...],
        **rest: Any,
    ) -> Any:
        given = {"nproc": nproc, "nodes": nodes}
        settings = {name: value for name, value in given.items() if value is not None}
        for text in launch_sets:
            settings = merge(settings, *parse_set(text))
        if launcher is None and settings:
            raise UserError("--nproc, --nodes and --launch-set go with --launch torchrun|slurm|k8s")
        return run(launch=LaunchFlags(launcher, settings) if launcher else None, **rest)

    return wrapped

"""Entry point: finds the command, runs it, and turns what went wrong into one line."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import click

from lmworks import __version__
from lmworks.cli.table import COMMANDS, GROUPS, STAGE
from lmworks.core.errors import UserError, nearest
from lmworks.core.tables import load_target

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class LazyGroup(click.Group):
    """A group whose commands are looked up in the table and imported when called."""

    def __init__(self, prefix: str = "", **options: Any) -> None:
        super().__init__(**options)
        self._prefix = prefix

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:  # `lmworks` alone asks what there is
            click.echo(ctx.get_help())
            ctx.exit()
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The reader went away (`lmworks ... | head`); a second error at exit would follow,
            # and click would call it a failure.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit()

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lines())

    def _lines(self) -> dict[str, str]:
        """Name -> one line of help, in the table's order."""
        if self._prefix:
            start = self._prefix + " "
            return {
                n.removeprefix(start): h for n, (_, h) in COMMANDS.items() if n.startswith(start)
            }
        return {n: h for n, (_, h) in COMMANDS.items() if " " not in n} | GROUPS

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        full = f"{self._prefix} {name}".strip()
        if full in COMMANDS:
            target, line = COMMANDS[full]
            if target.startswith(STAGE):
                from lmworks.cli.stage_command import stage_command

                return stage_command(name, load_target(target.removeprefix(STAGE)), line)
            command: click.Command = load_target(target)
            return command
        if full in GROUPS:
            return LazyGroup(full, name=name, help=GROUPS[full], context_settings=_SETTINGS)
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self._lines():
            close = nearest(args[0], self._lines())
            hint = f"did you mean {close!r}? " if close else ""
            raise UserError(
                f"unknown command {args[0]!r}: {hint}`{ctx.command_path} --help` lists them"
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self._lines().items()))


@click.group(
    cls=LazyGroup,
    context_settings=_SETTINGS,
    epilog="Start with `lmworks quickstart`. Every command explains itself with --help.",
)
@click.version_option(__version__, message="lmworks %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--quiet", is_flag=True, help="No progress, only results and errors.")
def cli(debug: bool, quiet: bool) -> None:
    """A language model's whole life, on the machine you have: text, tokens, training, tuning,
    measuring, compressing, serving."""
    from lmworks.core import progress

    if debug:
        os.environ["LMWORKS_DEBUG"] = "1"
    progress.set_mode("quiet" if quiet else "bar" if sys.stderr.isatty() else "lines")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0 is success, 2 something the user can mend, 130 a stop by Ctrl-C, 1 a bug of ours.
    """
    # OpenMP's threads spin while they wait, which starves them of each other's core as soon as
    # anything else runs: with one of two cores busy, training is 4 times faster with short spins.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if arguments is None:
        _start_for_training(sys.argv[1:])
    try:
        status = cli.main(args=arguments, prog_name="lmworks", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        return _fail("stopped; run the same command again to go on", 130, plain=True)
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except click.ClickException as error:
        return _fail(_click_message(error), 2)
    except OSError as error:  # what no room foresaw of the system: which file, and why
        place = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{place}", 2)
    except MemoryError:
        return _fail("out of memory: take a smaller model, batch or context", 2)
    return status if isinstance(status, int) else 0


_TRAIN = ("train", "run", "quickstart")
_STARTED = "LMWORKS_STARTED_ANEW"  # the number of the process that was


def _start_for_training(arguments: list[str]) -> None:
    """Start this process once more in the environment that training wants, see `threads`.

    It stays the same process, with the same number, files and terminal. Where it can't be started
    by the same words, or where the setting is taken away from it on the way, it goes on as it is.
    """
    words = [word for word in arguments if not word.startswith("-")]
    if not words or words[0] not in _TRAIN or {"-h", "--help"} & {*arguments}:
        return
    if os.environ.get(_STARTED) == str(os.getpid()):
        return
    same_words = sys.orig_argv[-len(arguments) :] == arguments
    if not (same_words and sys.executable and Path(sys.argv[0]).is_file()):
        return  # called from a program, or read from standard input
    from lmworks.training.threads import without_kept_chunks

    environment = without_kept_chunks()
    if environment is not None:
        environment[_STARTED] = str(os.getpid())
        with contextlib.suppress(OSError):  # it is a saving, and no more
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _click_message(error: click.ClickException) -> str:
    message = error.format_message()
    if isinstance(error, click.UsageError) and error.ctx is not None:
        message += f" (see `{error.ctx.command_path} --help`)"
    return message


def _fail(message: str, status: int, *, plain: bool = False) -> int:
    if os.environ.get("LMWORKS_DEBUG") and not plain:
        import traceback

        traceback.print_exc()
    start = "lmworks: " if plain else "lmworks: error: "
    click.echo(start + " ".join(message.splitlines()), err=True)
    return status


if __name__ == "__main__":
    sys.exit(main())

"""`docs/cli.md` from the help texts, so that the page says what the command line says.

python tools/make_cli_docs.py           # write the page
python tools/make_cli_docs.py --check   # 1 if it is not what it should be
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import click

from lmworks.cli.main import cli
from lmworks.cli.table import COMMANDS, GROUPS

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
_WIDTH = 92
_START = """# Commands

<!-- Made from the help texts by tools/make_cli_docs.py. -->

Every command prints its help with `--help`, its result on standard output, and progress and the
resolved settings on standard error. The status is 0 for success, 2 for what you can mend (one line
says what), 130 after Ctrl-C (run the same command again to go on), and 1 for a bug.
"""


def page() -> str:
    """The whole page."""
    parts = [_START, _section("lmworks", [])]
    for name in COMMANDS:
        group, _, rest = name.partition(" ")
        if rest and name == _first(group):
            parts.append(f"## lmworks {group}\n\n{GROUPS[group]}\n")
        parts.append(_section(f"lmworks {name}", name.split(), level=3 if rest else 2))
    return "\n".join(parts)


def _first(group: str) -> str:
    return next(name for name in COMMANDS if name.startswith(group + " "))


def _section(title: str, path: list[str], level: int = 2) -> str:
    return f"{'#' * level} {title}\n\n```text\n{_help(path)}\n```\n"


def _help(path: list[str]) -> str:
    """What `lmworks PATH --help` prints at a fixed width."""
    command: click.Command = cli
    context = click.Context(cli, info_name="lmworks", **_settings(cli))
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(context, name)
        assert found is not None, name
        command = found
        context = click.Context(command, info_name=name, parent=context, **_settings(command))
    text = command.get_help(context).replace(platform.python_version(), "3.x")
    return "\n".join(line.rstrip() for line in text.splitlines())


def _settings(command: click.Command) -> dict[str, object]:
    return command.context_settings | {"terminal_width": _WIDTH, "max_content_width": _WIDTH}


def main() -> int:
    """Write or check the page."""
    text = page()
    if "--check" in sys.argv[1:]:
        fresh = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        if not fresh:
            print(f"{PAGE} is stale: run python tools/make_cli_docs.py", file=sys.stderr)
        return 0 if fresh else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A stage command, made from its config class: one description for command, recipe, lineage."""

from __future__ import annotations

import inspect
import typing
from pathlib import Path
from typing import Any

import click

from lmworks.cli.launching import LaunchFlags, launch_options, with_launch
from lmworks.cli.printing import print_artifact, print_config
from lmworks.core import processes
from lmworks.core.config import (
    REFERENCE,
    Option,
    base_of_kinds,
    from_mapping,
    merge,
    options,
    parse_set,
    type_name,
)
from lmworks.core.errors import UserError
from lmworks.core.stages import Stage, references


def stage_command(name: str, stage: Stage[Any], line: str) -> click.Command:
    """A click command whose options are the flagged fields of the stage's config."""
    config_type = stage.config_type
    fields = config_options(config_type)

    def run(
        out: str,
        sets: tuple[str, ...],
        recipe: str | None,
        replace: bool,
        dry_run: bool,
        launch: LaunchFlags | None = None,
        **given: Any,
    ) -> int | None:
        config = build_config(config_type, recipe, given, sets)
        if processes.is_main() and (launch is None or dry_run or launch.kind != "torchrun"):
            print_config(stage.name, config, out)
        if dry_run:
            _check_references(config)
            for line in stage.plan(config) if stage.plan else ():
                click.echo(line)
        if launch is not None:
            path = click.get_current_context().command_path
            return launch.start(path.split()[1:], config, out, replace=replace, dry_run=dry_run)
        if not dry_run:
            artifact = stage(config, out, replace=replace)
            if processes.is_main():
                print_artifact(artifact)
        return None

    if stage.many_processes:
        fields += launch_options()
        run = with_launch(run)
    return click.Command(
        name,
        params=[*fields, *_common(stage.makes)],
        callback=run,
        help=help_text(config_type),
        short_help=line,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def config_options(config_type: type) -> list[click.Option]:
    """A click option for each flagged field of a config class."""
    return [_option(item) for item in options(config_type) if item.flag and not item.nested]


def settings_options() -> tuple[click.Option, click.Option, click.Option]:
    """--set, --recipe and --dry-run, as `build_config` and its callers take them."""
    return (
        click.Option(
            ["--set", "sets"],
            multiple=True,
            metavar="KEY=VALUE",
            help="Any setting of the config, nested ones as a.b=value. May be repeated.",
        ),
        click.Option(["--recipe"], help="YAML file with settings; flags go before it."),
        click.Option(["--dry-run"], is_flag=True, help="Print the resolved config and stop."),
    )


def _common(makes: str) -> list[click.Parameter]:
    sets, recipe, dry_run = settings_options()
    return [
        click.Option(["--out"], default=f"runs/{makes}", show_default=True, help="Folder to make."),
        sets,
        recipe,
        click.Option(["--replace"], is_flag=True, help="Replace another artifact at --out."),
        dry_run,
    ]


def _option(item: Option) -> click.Option:
    flag = "--" + item.name.replace("_", "-")
    shown = item.help[:1].upper() + item.help[1:]
    if item.required:
        shown += " (required)"
    elif item.default not in ("", None) and not item.repeat:
        default = str(item.default).lower() if isinstance(item.default, bool) else item.default
        shown += f" [default: {default}]"
    if item.repeat:
        shown += "; may be repeated, @FILE gives one a line"
        return click.Option([item.repeat, item.name], multiple=True, metavar="TEXT", help=shown)
    if item.type is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}", item.name], default=None, help=shown)
    if typing.get_origin(item.type) is typing.Literal:
        kind: Any = click.Choice([str(a) for a in typing.get_args(item.type)])
    else:
        kind = {int: int, float: float}.get(item.type, str)
    # No default here: what the user did not say must not override a recipe.
    metavar = "REF" if item.role == REFERENCE else type_name(item.type)
    if base_of_kinds(item.type) is not None:
        metavar = "kind"
    if not isinstance(kind, click.Choice):
        metavar = metavar.upper()  # choices are typed as they are shown
    return click.Option([flag, item.name], type=kind, default=None, metavar=metavar, help=shown)


def build_config(
    config_type: type, recipe: str | None, given: dict[str, Any], sets: tuple[str, ...]
) -> Any:
    """The config that recipe, flags and --set say, the later over the earlier."""
    values: dict[str, Any] = {}
    if recipe:
        values = _read_recipe(Path(recipe))
    known = {item.name: item for item in options(config_type)}
    given = {name: value for name, value in given.items() if value not in (None, ())}
    values |= {name: _from_flag(known[name], value) for name, value in given.items()}
    for name in known.keys() & values.keys():
        if base_of_kinds(known[name].type) is not None and isinstance(values[name], str):
            values[name] = {"kind": values[name]}  # so that --set can add to it
    for text in sets:
        path, value = parse_set(text)
        values = merge(values, path, value)
    missing = [o.name for o in options(config_type) if o.required and o.name not in values]
    if missing:
        flags = ", ".join("--" + name.replace("_", "-") for name in missing)
        raise UserError(f"missing {flags}; see --help")
    return from_mapping(config_type, values, where=recipe or "config")


def _from_flag(item: Option, value: Any) -> Any:
    """A flag's text as the value that its field wants, where click does not make it."""
    origin = typing.get_origin(item.type)
    if item.repeat:
        return [text for one in value for text in _texts(one)]
    if origin is typing.Literal:
        return next(a for a in typing.get_args(item.type) if str(a) == value)
    if origin in (list, tuple, dict):
        return parse_set(f"{item.name}={value}")[1]
    return value


def _texts(value: str) -> list[str]:
    """A text as it is; of `@FILE`, the lines that are not empty."""
    if not value.startswith("@"):
        return [value]
    path = Path(value[1:])
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise UserError(
            f"{value}: {path} can't be read: {error.strerror}; a text that begins with @ can stand "
            "in a file"
        ) from error
    return [line for line in lines if line]


def _read_recipe(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"recipe {path} can't be read: {error.strerror}") from error
    # A date or number that looks right and is not is a plain ValueError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"recipe {path} is not valid YAML: {reason}") from error
    if not isinstance(values, dict):
        raise UserError(f"recipe {path} must hold settings as `key: value`")
    return values


def _check_references(config: Any) -> None:
    from lmworks.core.references import resolve

    for name, reference in references(config):
        click.echo(f"  {name}: {resolve(reference).path}", err=True)


def help_text(config_type: type) -> str:
    """A config's docstring as click wants it: the examples keep their lines."""
    text = inspect.getdoc(config_type) or ""
    about, _, examples = text.partition("Examples:")
    lines = inspect.cleandoc(examples).splitlines()
    block = "\n".join(["\b", "Examples:", *("  " + line for line in lines)])
    return about.strip() + ("\n\n" + block if lines else "")

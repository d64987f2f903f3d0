"""Which models `lmworks serve` has: its options for them, and the pool that they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lmworks.core.errors import UserError, unknown_name

if TYPE_CHECKING:
    from lmworks.serving.model_pool import ModelPool
    from lmworks.serving.model_specs import PoolSpec

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--base", default="", metavar="REF", help="The model under those that are adapters."
    ),
    click.option(
        "--max-batch", default=8, show_default=True, help="Answers at the same time, each."
    ),
    click.option("--max-positions", type=int, help="Prompt and answer together, in tokens."),
    click.option(
        "--cache-tokens",
        type=int,
        metavar="N",
        help="Of all answers together; with fewer than they need, some wait for others.",
    ),
    click.option(
        "--prefix-tokens",
        type=int,
        metavar="N",
        help="Of known beginnings to keep for later prompts; 0: none. By default 512 MB of them.",
    ),
    click.option(
        "--turn-tokens",
        type=int,
        metavar="N",
        help="Of prompts to read before running answers go on; 128 by default.",
    ),
    click.option(
        "--speculate",
        default="",
        metavar="HOW",
        help="Guess tokens, check several at once: lookup, draft=REF or early-exit=K.",
    ),
    click.option(
        "--cache-type",
        type=click.Choice(["f32", "f16", "q8_0"]),
        show_default="f32",
        help="How keys and values are held: f32, f16 (half), q8_0 (a quarter); all but f32 slower.",
    ),
    click.option(
        "--models",
        "file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="More models, each with its settings: a models.yaml.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        help="CPU threads that models compute with; by default what torch takes.",
    ),
    click.option("--memory-budget", metavar="SIZE", help="For all models together, such as 4GB."),
    click.option("--keep-alive", metavar="TIME", help="Unload what was idle so long: 10m."),
    click.option("--pin", multiple=True, metavar="NAME", help="Never unload it to make room."),
    click.option(
        "--preload/--no-preload",
        default=None,
        help="Load at the start or at first use; by default at the start unless there is a budget.",
    ),
    click.option(
        "--adapters",
        "adapter_folder",
        type=click.Path(path_type=Path, file_okay=False, exists=True),
        metavar="FOLDER",
        help="Let clients load the adapters in it.",
    ),
)


def model_options(command: F) -> F:
    """The options that `open_pool` takes."""
    for add in reversed(_OPTIONS):
        command = add(command)
    return command


def pool_of(references: tuple[str, ...], *, adapter_folder: Path | None, **given: Any) -> ModelPool:
    """The pool that the command line describes; `load_first` loads what is to be there at once.

    Raises: UserError in one line for whatever does not fit together.
    """
    from lmworks.serving.model_pool import ModelPool

    return ModelPool(_spec(references, **given), adapter_folder=adapter_folder)


def named_reference(text: str) -> tuple[str, str]:
    """The name that clients ask for, and the reference: of NAME=REFERENCE or a reference alone."""
    from lmworks.cli.printing import reference_name

    name, equals, reference = text.partition("=")
    if not equals or "/" in name or ":" in name:
        return reference_name(text), text
    return name, reference


def load_first(pool: ModelPool, preload: bool | None) -> None:
    """Load the models that are to be there when the server answers."""
    if preload or (preload is None and pool.spec.memory_budget is None):
        pool.preload()


def _spec(
    references: tuple[str, ...],
    *,
    base: str,
    max_batch: int,
    max_positions: int | None,
    cache_tokens: int | None,
    prefix_tokens: int | None,
    turn_tokens: int | None,
    speculate: str,
    cache_type: str | None,
    file: Path | None,
    threads: int | None,
    memory_budget: str | None,
    keep_alive: str | None,
    pin: tuple[str, ...],
) -> PoolSpec:
    """The models of the command line and of the file; the command line's words count."""
    from lmworks.core.quantities import parse_bytes, parse_seconds
    from lmworks.serving.model_specs import PoolSpec, read_pool_spec, specs_of_references

    named = [named_reference(text) for text in references]
    models = specs_of_references(named, base=base, max_batch=max_batch, max_positions=max_positions)
    engine: dict[str, Any] = {
        "cache_tokens": cache_tokens,
        "prefix_tokens": prefix_tokens,
        "turn_tokens": turn_tokens,
        "speculate": speculate,
        "cache_type": cache_type or "f32",
    }
    models = {name: dataclasses.replace(model, **engine) for name, model in models.items()}
    spec = read_pool_spec(file) if file else PoolSpec(models={})
    if not models and not spec.models:
        raise UserError("no model: name one, such as smollm2-135m, or a file with --models")
    if both := models.keys() & spec.models.keys():
        raise UserError(f"{min(both)!r} is on the command line and in {file}: rename one")
    models |= spec.models
    for name in pin:
        if name not in models:
            raise unknown_name("model", name, models)
        models[name] = dataclasses.replace(models[name], pinned=True)
    budget, seconds = spec.memory_budget, spec.keep_alive_s
    if memory_budget:
        budget = parse_bytes(memory_budget, "--memory-budget")
    if keep_alive:
        seconds = parse_seconds(keep_alive, "--keep-alive")
    return PoolSpec(
        models=models,
        memory_budget=budget,
        keep_alive_s=seconds,
        threads=threads or spec.threads,
    )

"""`lmworks serve --engine`: which program computes the models that are served."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import click

from lmworks.cli.served_models import named_reference, pool_of
from lmworks.core.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])
_ENGINE = "What computes: lmworks itself, or a server of vLLM or llama.cpp that it starts."
_URL = "Of a server of that engine that runs already, up to and with /v1."
_ARGUMENT = "Handed to the engine's program as it is; may be repeated."
_SHARED = ("max_batch", "max_positions")  # what other engines understand too


def engine_options(command: F) -> F:
    """--engine and what belongs to it."""
    kinds = click.Choice(["lmworks", "vllm", "llama.cpp"])
    for add in (
        click.option("--engine-arg", "engine_args", multiple=True, metavar="ARG", help=_ARGUMENT),
        click.option("--engine-url", default="", metavar="URL", help=_URL),
        click.option("--engine", type=kinds, default="lmworks", show_default=True, help=_ENGINE),
    ):
        command = add(command)
    return command


@contextlib.contextmanager
def models_of(
    engine: str,
    references: tuple[str, ...],
    url: str,
    arguments: tuple[str, ...],
    options: Mapping[str, Any],
) -> Iterator[Any]:
    """The pool of lmworks' own engine, or the models behind another one.

    Raises: UserError for options that the engine does not have.
    """
    if engine == "lmworks":
        if url or arguments:
            raise UserError("--engine-url and --engine-arg go with --engine vllm or llama.cpp")
        yield pool_of(references, **options)
        return
    if given := [name for name, value in options.items() if value and name not in _SHARED]:
        option = {"file": "models", "adapter_folder": "adapters"}.get(given[0], given[0])
        raise UserError(f"--{option.replace('_', '-')} is for lmworks' own engine, not {engine}")
    if not references:
        raise UserError("no model: name one, such as qwen=hf:Qwen/Qwen2.5-7B-Instruct")
    from lmworks.serving.engines import engine_models

    named = {}
    for text in references:
        name, reference = named_reference(text)
        if name in named:
            raise UserError(f"two models are called {name!r}: give one as other-name={reference}")
        named[name] = reference
    shared = {name: options[name] for name in _SHARED}
    with engine_models(engine, named, url=url, arguments=arguments, **shared) as models:
        yield models

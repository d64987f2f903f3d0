"""`lmworks train estimate`: how much memory a pre-training will take, and whether it fits."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import click

from lmworks.cli.stage_command import build_config, config_options
from lmworks.core.quantities import parse_bytes
from lmworks.training.pretrain import PretrainConfig

if TYPE_CHECKING:
    from lmworks.training.estimating import Forecast


def _run(
    vocab_size: int | None,
    memory: str | None,
    recipe: str | None,
    sets: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    from lmworks.training.estimating import forecast
    from lmworks.training.memory_advice import usable_memory

    limit = parse_bytes(memory, "--memory") if memory else usable_memory()
    config = build_config(PretrainConfig, recipe, {"corpus": "-", "tokenizer": "-", **{
        name: value for name, value in given.items() if value is not None
    }}, sets)  # fmt: skip
    if vocab_size is None and config.tokenizer != "-":
        from lmworks.tokenizers.load import load_tokenizer

        vocab_size = load_tokenizer(config.tokenizer).vocab_size
    found = forecast(config, vocab_size or 4096, limit=limit)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found) | {"limit": limit}, indent=1))
    else:
        _print(found, limit)
    click.get_current_context().exit(1 if found.fits is False else 0)


def _print(found: Forecast, limit: int) -> None:
    from lmworks.training.memory_advice import megabytes

    told = found.estimate
    click.echo(f"{found.num_parameters / 1e6:,.1f} M parameters")
    rows = [("before the model", told.baseline), *told.parts.items()]
    rows.append(("lost between blocks", told.peak - told.baseline - told.live))
    for name, size in rows:
        click.echo(f"  {name:<20} {megabytes(size):>12}")
    click.echo(f"  {'at the most':<20} {megabytes(told.peak):>12}   during {told.when}")
    if found.fits is None:
        return
    judgement = "fits into" if found.fits else "does not fit into"
    click.echo(f"{judgement} {megabytes(limit)}" + (f": {found.advice}" if found.advice else ""))


command = click.Command(
    "estimate",
    params=[
        *config_options(PretrainConfig),
        click.Option(["--vocab-size"], type=click.IntRange(min=2), metavar="INT",
                     help="Tokens of the vocabulary; the tokenizer's if one is given. "
                     "[default: 4096]"),
        click.Option(["--memory"], metavar="SIZE", help="What there is, such as 8GB. "
                     "[default: this machine's]"),
        click.Option(["--set", "sets"], multiple=True, metavar="KEY=VALUE",
                     help="Any setting of the config, nested ones as a.b=value."),
        click.Option(["--recipe"], help="YAML file with settings; flags go before it."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    ],
    callback=_run,
    help="""Tell how much memory `train pretrain` with these settings takes, part by part, and
whether it fits; if not, what to lower and by how much. Nothing is trained and no corpus is read.
The exit status is 1 if it does not fit.

\b
Examples:
  lmworks train estimate --depth 12 --batch-size 32 --vocab-size 32000
  lmworks train estimate --depth 12 --batch-size 32 --memory 4GB
  lmworks train estimate --depth 6 --set loop.optimizer.name=adamw --json
""",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)  # fmt: skip

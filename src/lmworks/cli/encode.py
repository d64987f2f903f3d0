"""`lmworks tokenizer encode REF TEXT`: how a text is cut, or may be cut."""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lmworks.tokenizers.tokenizer import PipelineTokenizer

_LONG = 1 << 20  # bytes or characters of a text; ids on the way to the screen


@click.command()
@click.argument("reference", metavar="TOKENIZER")
@click.argument("text", default="", required=False)
@click.option("--ids", is_flag=True, help="Only the ids, on one line.")
@click.option("--special", is_flag=True, help="Read the text of special tokens as those tokens.")
@click.option("--sample", type=click.IntRange(1), help="So many cuts drawn at random, one a line.")
@click.option("--alpha", type=float, help="Of a Unigram sample: 0 any cut, large the best.  [0.1]")
@click.option("--dropout", type=float, help="Of a BPE or WordPiece sample: left out.  [0.1]")
@click.option("--seed", type=int, default=0, help="Of the first sample.", show_default=True)
@click.option("--best", type=click.IntRange(1), help="So many of the most probable cuts (Unigram).")
def command(
    reference: str,
    text: str,
    ids: bool,
    special: bool,
    sample: int | None,
    alpha: float | None,
    dropout: float | None,
    seed: int,
    best: int | None,
) -> None:
    """Show the tokens of TEXT (or of standard input).

    \b
    Examples:
      lmworks tokenizer encode smollm2-135m "Hello, world"
      lmworks tokenizer encode lmworks-quickstart/tokenizer --ids < README.md
      lmworks tokenizer encode smollm2-135m "unbelievable" --sample 5 --dropout 0.3
      lmworks tokenizer encode runs/unigram "unbelievable" --best 5
    """
    from lmworks.core.errors import UserError
    from lmworks.tokenizers.load import load_tokenizer

    if sample is None and (alpha is not None or dropout is not None):
        raise UserError("--alpha and --dropout are settings of --sample: say how many cuts")
    if sample is not None and best is not None:
        raise UserError("--sample and --best are two ways to choose cuts: take one")
    tokenizer = load_tokenizer(reference)
    data: str | bytes = text or sys.stdin.buffer.read()
    if sample is not None:
        _show_sample(tokenizer, data, ids, special, range(seed, seed + sample), alpha, dropout)
    elif best is not None:
        _show_best(tokenizer, data, ids, special, best)
    else:
        _show(tokenizer, data, ids, special)


def _show(tokenizer: PipelineTokenizer, data: str | bytes, ids: bool, special: bool) -> None:
    # The list of a long text's ids would take many times the memory of the array.
    encode = tokenizer.encode_array if len(data) > _LONG else tokenizer.encode
    found = encode(data, allow_special=special)
    parts = (list(map(int, found[at : at + _LONG])) for at in range(0, len(found), _LONG))
    if ids:
        for number, part in enumerate(parts):
            click.echo(" " * (number > 0) + " ".join(map(str, part)), nl=False)
        click.echo()
        return
    for token_id in itertools.chain.from_iterable(parts):
        click.echo(f"{token_id:>7}  {tokenizer.decode_bytes([token_id])!r}")
    size = len(data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape"))
    click.echo(f"{len(found)} tokens, {size / max(1, len(found)):.2f} bytes per token")


def _show_sample(
    tokenizer: PipelineTokenizer,
    data: str | bytes,
    ids: bool,
    special: bool,
    seeds: range,
    alpha: float | None,
    dropout: float | None,
) -> None:
    from lmworks.tokenizers.subword_regularization import SubwordSampler

    sampler = SubwordSampler(tokenizer, alpha=alpha, dropout=dropout)
    for seed in seeds:
        click.echo(_line(tokenizer, sampler.encode(data, seed=seed, allow_special=special), ids))


def _show_best(
    tokenizer: PipelineTokenizer, data: str | bytes, ids: bool, special: bool, number: int
) -> None:
    from lmworks.tokenizers.subword_regularization import best_cuts

    for found, score in best_cuts(tokenizer, data, number, allow_special=special):
        shown = _line(tokenizer, found, ids)
        click.echo(shown if ids else f"{score:10.4f} nats  {shown}")


def _line(tokenizer: PipelineTokenizer, found: list[int], ids: bool) -> str:
    """The tokens as files write them, without line breaks of their own."""
    if ids:
        return " ".join(map(str, found))
    return " ".join(repr(tokenizer.token_text(token_id))[1:-1] for token_id in found)

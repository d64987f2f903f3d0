"""`lmworks explain attention MODEL`: what each head of a model looks at in a text."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmworks.core.errors import UserError

if TYPE_CHECKING:
    from lmworks.evaluation.attention_report import AttentionReport
    from lmworks.models.attention_summaries import HeadSummary


@click.command()
@click.argument("reference", metavar="MODEL")
@click.option("--text", default="", help="The text itself.")
@click.option("--file", "path", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A file with the text.")  # fmt: skip
@click.option("--layers", default="", metavar="LIST", help="Only these: 3 or 0,5-7.")
@click.option("--heads", default="", metavar="LIST", help="Only these heads of each layer.")
@click.option("--query", type=int, help="Print what this token (0 is the first) looks at.")
@click.option("--rollout", is_flag=True, help="Add attention rollout over all layers.")
@click.option("--packed", is_flag=True, help="Keep a GGUF file's matrices as small as they are.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path),
              help="Write a page (.html) or a picture (.svg, .png).")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print every head's figures as JSON.")
def command(
    reference: str,
    text: str,
    path: Path | None,
    layers: str,
    heads: str,
    query: int | None,
    rollout: bool,
    packed: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Show what each attention head of MODEL looks at: figures, and pictures of layers and heads.

    Weights are computed only for the layers and heads that are named.

    \b
    Examples:
      lmworks explain attention smollm2-135m --text "The cat sat. The cat slept." --out cat.html
      lmworks explain attention runs/base --file book.txt --layers 3 --heads 0,2 --out head.png
      lmworks explain attention smollm2-135m --text "one two one two" --layers 4 --query 3
    """
    from lmworks.cli.printing import reference_name
    from lmworks.evaluation import attention_page
    from lmworks.evaluation.attention_report import explain_attention
    from lmworks.models.load import load_single_model
    from lmworks.tokenizers.load import load_tokenizer

    if out:
        attention_page.check_path(out)
    chosen = _numbers(layers, "--layers"), _numbers(heads, "--heads")
    text = _text(text, path)
    model, tokenizer = load_single_model(reference, packed=packed), load_tokenizer(reference)
    report = explain_attention(
        model,
        tokenizer,
        text,
        name=reference_name(reference),
        layers=chosen[0],
        heads=chosen[1],
        query=query,
        with_rollout=rollout,
    )
    if out:
        attention_page.save(report, out)
    if as_json:
        figures = [dataclasses.asdict(summary) for summary in report.summaries]
        click.echo(json.dumps({"tokens": report.tokens, "every": report.every, "heads": figures},
                              ensure_ascii=False, indent=1))  # fmt: skip
        return
    _print(report, query)
    if out:
        click.echo(f"\nwritten: {out}")


def _text(text: str, path: Path | None) -> str:
    if bool(text) == (path is not None):
        raise UserError("give the text with --text, or a file with --file")
    if path is None:
        return text
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text: byte {error.start}") from None


def _numbers(text: str, option: str) -> list[int] | None:
    """`0,5-7` as numbers; None for nothing."""
    found: list[int] = []
    try:
        for part in text.split(",") if text else []:
            first, dash, last = part.partition("-")
            found += range(int(first), int(last if dash else first) + 1)
    except ValueError:
        raise UserError(f"{option} {text!r}: write numbers as 3 or 0,5-7") from None
    return sorted(set(found)) or None


def _print(report: AttentionReport, query: int | None) -> None:
    from collections import Counter

    from lmworks.models.attention_summaries import KINDS

    every = f", every {report.every}th query" if report.every > 1 else ""
    click.echo(f"{len(report.tokens):,} tokens, {len(report.summaries)} heads{every}")
    counts = Counter(summary.kind for summary in report.summaries)
    for kind, count in counts.most_common():
        click.echo(f"  {count:>4}  {KINDS[kind][0]:<15} {KINDS[kind][1]}")
    _print_heads([head.summary for head in report.chosen])
    for (layer, head), seen in report.rows.items():
        click.echo(
            f"\nlayer {layer}, head {head}: token {query} {report.tokens[query or 0]!r} looks at"
        )
        for place, token, weight in seen:
            click.echo(f"  {weight:6.3f}  {place:>5} {token!r}")


def _print_heads(summaries: list[HeadSummary]) -> None:
    if len(summaries) > 1:
        click.echo("\nthe clearest of each kind")
    click.echo("  head  kind             bits  distance  first  previous  itself  induction")
    for s in summaries:
        induction = "-" if s.induction is None else f"{s.induction:.3f}"
        click.echo(
            f"  {f'{s.layer}.{s.head}':<5} {s.label:<15} {s.entropy:>5.2f} {s.distance:>9.1f} "
            f"{s.first:>6.3f} {s.previous:>9.3f} {s.itself:>7.3f} {induction:>10}"
        )

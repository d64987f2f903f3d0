"""`lmworks tokenizer compare A B ... --text PATH`: tokenizers side by side."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lmworks.evaluation.tokenizer_comparison import ChangedWord, Comparison
    from lmworks.evaluation.tokenizer_fairness import FairnessRow


@click.command()
@click.argument("references", metavar="TOKENIZER...", nargs=-1, required=True)
@click.option(
    "--text",
    "path",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="A corpus, parallel text, a file, or a folder whose sub-folders (or files) are languages.",
)
@click.option("--context", type=click.IntRange(min=1), help="Tokens of a context window.")
@click.option("--price", type=click.FloatRange(min=0), help="Price of a million tokens.")
@click.option("--words", type=click.IntRange(min=0), default=15, show_default=True,
              help="With two tokenizers: how many changed words to list.")  # fmt: skip
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with coloured tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    references: tuple[str, ...],
    path: Path,
    context: int | None,
    price: float | None,
    words: int,
    html: Path | None,
    as_json: bool,
) -> None:
    """Compare tokenizers on your text; the first is what the others are measured against.

    \b
    Examples:
      lmworks tokenizer compare smollm2-135m runs/tokenizer --text book.txt
      lmworks tokenizer compare A B --text manuals/ --price 2.50 --context 8192 --html compare.html
    """
    from lmworks.core.files import write_text
    from lmworks.evaluation import tokenizer_comparison, tokenizer_fairness, tokenizer_page
    from lmworks.tokenizers.load import load_tokenizer

    names = _short_names(references)
    tokenizers = {name: load_tokenizer(ref) for name, ref in zip(names, references)}
    passages = tokenizer_comparison.read_passages(path)
    found = tokenizer_comparison.compare(tokenizers, passages, context=context, price=price)
    parallel = tokenizer_fairness.read_parallel_text(path)
    fair = tokenizer_fairness.fairness(tokenizers, parallel) if parallel else []
    changed: list[ChangedWord] = []
    if len(tokenizers) == 2:
        texts = (passage.text for passage in passages)
        before, after = tokenizers.values()
        changed = tokenizer_comparison.changed_words(before, after, texts)
    if html:
        write_text(html, tokenizer_page.render(found, tokenizers, changed, fair))
    if as_json:
        click.echo(json.dumps(_plain(found, fair, changed), ensure_ascii=False, indent=1))
        return
    _print_rows(found)
    if fair:
        _print_fairness(fair)
    else:
        _print_languages(found)
    _print_changed(changed, words)
    if html:
        click.echo(f"\nwritten: {html}")


def _short_names(references: tuple[str, ...]) -> list[str]:
    """The last part of each path; the whole where two would be called the same."""
    last = [Path(reference).name or reference for reference in references]
    return [name if last.count(name) == 1 else ref for name, ref in zip(last, references)]


def _plain(
    found: Comparison, fair: list[FairnessRow], changed: list[ChangedWord]
) -> dict[str, object]:
    from lmworks.evaluation.compare_tokenizers import plain

    words = [dataclasses.asdict(word) | {"saved": word.saved} for word in changed]
    return plain(found, fair) | {"changed_words": words}


def _print_rows(found: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{len(found.passages)} passages", title_justify="left")
    for name in (
        "tokenizer",
        "vocabulary",
        "tokens",
        "bytes/token",
        "tokens/word",
        "saved",
        "failed",
    ):
        table.add_column(name, justify="left" if name == "tokenizer" else "right")
    extra = [("of window", "context_share"), ("price", "price")]
    shown = [(title, key) for title, key in extra if getattr(found.rows[0], key) is not None]
    for title, _ in shown:
        table.add_column(title, justify="right")
    for row in found.rows:
        saved = "" if row.saved is None else f"{100 * row.saved.estimate:+.1f} %"
        if row.saved is not None and row.saved.known:
            saved += f" [{100 * row.saved.low:+.1f}, {100 * row.saved.high:+.1f}]"
        cells = [
            *(row.name, f"{row.vocab_size:,}", f"{row.tokens:,}"),
            *(
                f"{row.bytes_per_token.estimate:.3f}",
                f"{row.fertility:.2f}",
                saved,
                str(row.failures),
            ),
        ]
        for _, key in shown:
            value = getattr(row, key)
            cells.append(f"{100 * value:.1f} %" if key == "context_share" else f"{value:.4f}")
        table.add_row(*(cell.replace("[", r"\[") for cell in cells))
    Console(soft_wrap=True).print(table)
    for row in found.rows:
        if row.first_failure is not None:
            click.echo(
                f"{row.name}: the first passage that does not come back: {row.first_failure!r}"
            )


def _print_languages(found: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    if not found.languages:
        return
    table = Table(title="languages; parity: tokens for each one of the first", title_justify="left")
    for name in ("tokenizer", "language", "tokens", "bytes/token", "tokens/word", "parity"):
        table.add_column(name, justify="left" if name in ("tokenizer", "language") else "right")
    for row in found.languages:
        figures = (f"{row.bytes_per_token:.2f}", f"{row.fertility:.2f}", f"{row.parity:.2f}")
        table.add_row(row.tokenizer, row.language, f"{row.tokens:,}", *figures)
    Console(soft_wrap=True).print(table)


def _print_fairness(rows: list[FairnessRow]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = "the same sentences; parity: tokens for each one of the first language"
    table = Table(title=title, title_justify="left")
    for name in ("tokenizer", "language", "tokens/sentence", "parity"):
        table.add_column(name, justify="left" if name in ("tokenizer", "language") else "right")
    for row in rows:
        parity = "1"
        if row.parity is not None:
            parity = f"{row.parity.estimate:.3f}"
            if row.parity.known:
                parity += rf" \[{row.parity.low:.3f}, {row.parity.high:.3f}]"
        sentence = f"{row.tokens_per_sentence.estimate:.2f}"
        table.add_row(row.tokenizer, row.language, sentence, parity)
    Console(soft_wrap=True).print(table)


def _print_changed(changed: list[ChangedWord], most: int) -> None:
    if not changed or not most:
        return
    total = sum(word.saved for word in changed)
    click.echo(f"\n{len(changed):,} words changed, {total:+,} tokens saved over all of them:")
    for word in changed[:most]:
        before, after = ("·".join(parts) for parts in (word.before, word.after))
        click.echo(f"  {word.saved:>+7}  {word.count:>6} x {word.word!r}: {before!r} -> {after!r}")

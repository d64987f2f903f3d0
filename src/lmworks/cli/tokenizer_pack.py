"""`lmworks tokenizer pack TOKENIZER CORPUS`: what each way of packing would cost, as a dry run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("reference", metavar="TOKENIZER")
@click.argument("corpus", type=click.Path(exists=True, path_type=Path))
@click.option("--length", type=click.IntRange(min=1), default=2048, show_default=True,
              help="Tokens of a sequence.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(reference: str, corpus: Path, length: int, as_json: bool) -> None:
    """Compare ways to pack a corpus (folder, .jsonl, .txt) into sequences of one length.

    Each document counts with one separator. Nothing is written.

    \b
    Examples:
      lmworks tokenizer pack smollm2-135m runs/corpus --length 2048
    """
    from lmworks.core.errors import UserError
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.tokenizers.packing import PACKERS
    from lmworks.tokenizers.train import read_texts

    path = corpus / "train.jsonl" if corpus.is_dir() else corpus
    tokenizer = load_tokenizer(reference)
    sizes = [len(ids) + 1 for ids in tokenizer.encode_batch(read_texts(path))]
    if not sizes:
        raise UserError(f"{path} holds no documents")
    rows = [_row(strategy, sizes, length) for strategy in PACKERS]
    if as_json:
        click.echo(json.dumps({"documents": len(sizes), "length": length, "packings": rows}))
        return
    _print(rows, len(sizes), sum(sizes), sum(size > length for size in sizes), length)


def _row(strategy: str, sizes: list[int], length: int) -> dict[str, Any]:
    from lmworks.tokenizers.packing import pack

    started = time.perf_counter()
    packing = pack(sizes, length, strategy)
    return {
        "strategy": strategy,
        "sequences": len(packing.sequences),
        "padding_share": packing.padding_share,
        "documents_cut": packing.documents_cut,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _print(
    rows: list[dict[str, Any]], documents: int, tokens: int, too_long: int, length: int
) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{documents:,} documents, {tokens:,} tokens; {too_long:,} are longer than {length:,}"
    table = Table(title=title, title_justify="left")
    table.add_column("strategy")
    for name in ("sequences", "padding", "documents cut", "seconds"):
        table.add_column(name, justify="right")
    for row in rows:
        cut = f"{row['documents_cut']:,} ({100 * row['documents_cut'] / documents:.1f} %)"
        padding = f"{100 * row['padding_share']:.2f} %"
        table.add_row(
            row["strategy"], f"{row['sequences']:,}", padding, cut, f"{row['seconds']:.2f}"
        )
    Console(soft_wrap=True).print(table)

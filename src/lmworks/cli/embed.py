"""`lmworks embed MODEL FILE...`: vectors of texts, as .npy or JSON lines."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmworks.core.errors import UserError

if TYPE_CHECKING:
    from lmworks.inference.embedding import Embedder

_AT_ONCE = 1024  # texts


@click.command()
@click.argument("reference", metavar="MODEL")
@click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--base", default="", metavar="REF", help="The model under MODEL, an adapter.")
@click.option("--out", type=click.Path(path_type=Path), help="vectors.npy or vectors.jsonl.")
@click.option("--field", default="text", show_default=True, help="Of JSON lines: which is read.")
@click.option("--whole", is_flag=True, help="One vector per file instead of per line.")
@click.option("--dimensions", type=int, help="Keep the first so many numbers (Matryoshka).")
@click.option("--prompt", help="Name of a prompt of the model; '' for none.")
@click.option(
    "--pooling", type=click.Choice(["auto", "mean", "first", "last"]), default="auto",
    show_default=True, help="Which states make the vector.",
)  # fmt: skip
@click.option("--refuse-long", is_flag=True, help="Stop at a text that is too long; else it's cut.")
def command(
    reference: str,
    files: tuple[Path, ...],
    base: str,
    out: Path | None,
    field: str,
    whole: bool,
    dimensions: int | None,
    prompt: str | None,
    pooling: Any,
    refuse_long: bool,
) -> None:
    """Vectors of the lines of FILEs (or of standard input) by MODEL: an encoder or a decoder.

    Text files give a text per line that is not empty, .jsonl files one per line in FIELD. The rows
    of a .npy are the texts in their order; JSON lines hold text and vector.

    \b
    Examples:
      lmworks embed minilm-l6 questions.txt --out questions.npy
      lmworks embed runs/encoder corpus/train.jsonl --out vectors.jsonl --dimensions 128
      echo "a text" | lmworks embed minilm-l6
    """
    from lmworks.inference.embedding import load_embedder

    if out is not None and out.suffix not in (".npy", ".jsonl"):
        raise UserError(f"--out {out}: name it .npy or .jsonl")
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} is no file")
    embedder = load_embedder(reference, base=base, pooling=pooling)
    texts = _texts(files, field, whole)
    settings = {"dimensions": dimensions, "prompt": prompt, "truncate": not refuse_long}
    if out is not None and out.suffix == ".npy":
        _write_array(embedder, texts, out, settings)
    else:
        _write_lines(embedder, texts, out, settings)


def _texts(files: tuple[Path, ...], field: str, whole: bool) -> Iterator[str]:
    if not files:
        yield from ([sys.stdin.read()] if whole else _lines(sys.stdin))
    for path in files:
        try:
            with path.open(encoding="utf-8") as file:
                if path.suffix == ".jsonl":
                    yield from _fields(path, file, field)
                elif whole:
                    yield file.read()
                else:
                    yield from _lines(file)
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is no text in UTF-8: {error.reason}") from error


def _lines(file: Any) -> Iterator[str]:
    return (line.strip() for line in file if line.strip())


def _fields(path: Path, file: Any, field: str) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: no JSON: {error}") from error
        text = value.get(field) if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise UserError(f"{path}, line {number}: no text in {field!r}: name it with --field")
        yield text


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    import itertools

    while some := list(itertools.islice(texts, _AT_ONCE)):
        yield some


def _write_array(
    embedder: Embedder, texts: Iterator[str], out: Path, settings: dict[str, Any]
) -> None:
    import numpy as np

    from lmworks.core.files import atomic_open, writing

    parts = [embedder.encode(some, **settings) for some in _batches(texts)]
    vectors = np.concatenate(parts) if parts else embedder.encode([], **settings)
    with writing(out), atomic_open(out, "wb") as file:
        np.save(file, vectors)
    click.echo(f"{out}  {vectors.shape[0]} x {vectors.shape[1]} float32")


def _write_lines(
    embedder: Embedder, texts: Iterator[str], out: Path | None, settings: dict[str, Any]
) -> None:
    from lmworks.core.files import atomic_open, writing

    def write(target: Any) -> int:
        count = 0
        for some in _batches(texts):
            for text, vector in zip(some, embedder.encode(some, **settings), strict=True):
                line = {"text": text, "embedding": vector.tolist()}
                target.write(json.dumps(line, ensure_ascii=False) + "\n")
                count += 1
        return count

    if out is None:
        write(sys.stdout)
        return
    with writing(out), atomic_open(out, "wb") as raw:
        target = io.TextIOWrapper(raw, encoding="utf-8")
        count = write(target)
        target.flush()
        target.detach()
    click.echo(f"{out}  {count} lines")

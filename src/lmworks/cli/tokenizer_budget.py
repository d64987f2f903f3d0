"""`lmworks tokenizer budget TOKENIZER REQUEST`: what a chat request costs, and making it fit."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lmworks.tokenizers.budget import Budget
    from lmworks.tokenizers.fitting import Fitted, Summarise
    from lmworks.tokenizers.requests import Request

_PIECE = 6000  # characters of a conversation that are summed up at once
_SUMMARY_TOKENS = 300


@click.command()
@click.argument("reference", metavar="TOKENIZER")
@click.argument("path", metavar="REQUEST")
@click.option(
    "--context",
    type=click.IntRange(min=1),
    help="Tokens of the context window.  [default: what the model's files say]",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=0),
    help="Tokens kept for the answer.  [default: the request's own max_tokens, else 0]",
)
@click.option(
    "--fit", "strategy", help="Make it fit: drop-oldest, middle-out, summarise, truncate-content."
)
@click.option("--summarise-with", "summariser", metavar="REF", help="Model that writes summaries.")
@click.option("--template", help="openai, chatml or a Jinja file, in place of the tokenizer's own.")
@click.option("--images", "rule", help="Rule that counts images, for example qwen2-vl.")
@click.option("--image-size", metavar="WxH", help="Size of images that are only linked.")
@click.option("--price", type=click.FloatRange(min=0), help="Price of a million tokens.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the request that fits.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    reference: str,
    path: str,
    context: int | None,
    max_tokens: int | None,
    strategy: str | None,
    summariser: str | None,
    template: str | None,
    rule: str | None,
    image_size: str | None,
    price: float | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Count a chat request (OpenAI's JSON; `-` reads standard input) exactly, part by part.

    With --fit, messages are dropped or cut until request and answer fit into the window.

    \b
    Examples:
      lmworks tokenizer budget smollm2-135m request.json --price 0.15
      lmworks tokenizer budget o200k_base.tiktoken request.json --template openai
      lmworks tokenizer budget runs/chat - --fit drop-oldest --max-tokens 500 --out fits.json
    """
    from lmworks.core.errors import UserError
    from lmworks.core.files import write_json
    from lmworks.tokenizers.budget import Counter
    from lmworks.tokenizers.chat_formats import with_template
    from lmworks.tokenizers.fitting import fit
    from lmworks.tokenizers.image_size import parse_size
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.tokenizers.requests import read_request

    request = _read(path)
    size = parse_size(image_size) if image_size else None
    tokenizer = load_tokenizer(reference)
    if template:
        tokenizer = with_template(tokenizer, template)
    counter = Counter(tokenizer, image_rule=rule or "", image_size=size)
    context = context or _context_of(reference)
    answer = max_tokens if max_tokens is not None else request.max_tokens or 0
    fitted = None
    if strategy:
        if context is None:
            raise UserError(f"{reference} does not say how long its context is: use --context")
        if context <= answer:
            raise UserError(f"{answer} tokens for the answer leave none of {context}: lower them")
        write = _summary_writer(summariser) if summariser else None
        fitted = fit(request, counter, limit=context - answer, strategy=strategy, summarise=write)
        request = read_request(request.with_messages(fitted.messages))
    budget = counter.budget(request)
    if out:
        write_json(out, dict(request.body))
    if as_json:
        click.echo(json.dumps(_plain(budget, fitted, context, answer, price), indent=1))
        return
    _print(budget, context, answer, price)
    _print_changes(fitted)
    if out:
        click.echo(f"written: {out}")


def _read(path: str) -> Request:
    from lmworks.core.errors import UserError
    from lmworks.tokenizers.requests import parse_request

    if path == "-":
        return parse_request(sys.stdin.buffer.read(), "standard input")
    try:
        return parse_request(Path(path).read_bytes(), path)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error


def _context_of(reference: str) -> int | None:
    """The context window that the model's own files name, if they do."""
    from lmworks.core.files import read_json
    from lmworks.core.gguf import find_gguf, read_gguf
    from lmworks.core.references import resolve

    path = resolve(reference).path
    found: Any = None
    if path is not None and path.is_dir() and (path / "config.json").is_file():
        values = read_json(path / "config.json", "config")
        found = values.get("max_position_embeddings") if isinstance(values, dict) else None
    elif path is not None and (weights := find_gguf(path)):
        metadata = read_gguf(weights).metadata
        found = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return found if isinstance(found, int) and found > 0 else None


def _summary_writer(reference: str) -> Summarise:
    """A model that sums up a conversation, piece by piece where it is long."""
    from lmworks.inference.chat import load_chat

    model = load_chat(reference)

    def write(text: str) -> str:
        summary = ""
        for start in range(0, len(text), _PIECE):
            ask = "Summarise this conversation in a few sentences. Keep names, numbers, decisions."
            before = f"What was said before: {summary}\n\n" if summary else ""
            content = f"{ask}\n\n{before}{text[start : start + _PIECE]}"
            message = {"role": "user", "content": content}
            summary = model.complete([message], max_tokens=_SUMMARY_TOKENS, temperature=0.0).text
        return summary

    return write


def _plain(
    budget: Budget, fitted: Fitted | None, context: int | None, answer: int, price: float | None
) -> dict[str, Any]:
    return {
        "tokens": budget.tokens,
        "content": budget.of("content"),
        "template": budget.of("template"),
        "images": budget.of("images"),
        "context": context,
        "max_tokens": answer,
        "left": None if context is None else context - answer - budget.tokens,
        "price": None if price is None else budget.tokens * price / 1e6,
        "parts": [dataclasses.asdict(part) | {"tokens": part.tokens} for part in budget.parts],
        "changes": [dataclasses.asdict(change) for change in fitted.changes] if fitted else [],
    }


def _print(budget: Budget, context: int | None, answer: int, price: float | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in ("part", "content", "template", "images", "tokens", "of window", "price"):
        if (name == "of window" and not context) or (name == "price" and price is None):
            continue
        table.add_column(name, justify="left" if name == "part" else "right")

    def add(name: str, content: int, template: int, images: int) -> None:
        total = content + template + images
        cells = [name, *(f"{n:,}" for n in (content, template, images, total))]
        cells += [f"{100 * total / context:.1f} %"] if context else []
        cells += [f"{total * price / 1e6:.6f}"] if price is not None else []
        table.add_row(*cells)

    for part in budget.parts:
        if part.kind == "tools" and not part.tokens:
            click.echo("the chat template has no place for tools: they are not counted")
            continue
        number = "" if part.index is None else f"{part.index} "
        add(number + (part.role or part.kind), part.content, part.template, part.images)
    table.add_section()
    add("all", *(budget.of(name) for name in ("content", "template", "images")))
    Console(soft_wrap=True).print(table)
    if context:
        left = context - answer - budget.tokens
        kept = f", {answer:,} kept for the answer" if answer else ""
        click.echo(
            f"window of {context:,}{kept}: {left:,} left"
            if left >= 0
            else f"window of {context:,}{kept}: {-left:,} too many; see --fit"
        )


def _print_changes(fitted: Fitted | None) -> None:
    if fitted is None:
        return
    if not fitted.changes:
        click.echo("it fits as it is")
    for change in fitted.changes:
        click.echo(f"  messages[{change.index}] ({change.role}): {change.what}")

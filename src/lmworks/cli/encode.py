"""`lmworks tokenizer encode REF TEXT`: how a text is cut."""

from __future__ import annotations

import sys

import click


@click.command()
@click.argument("reference", metavar="TOKENIZER")
@click.argument("text", default="", required=False)
@click.option("--ids", is_flag=True, help="Only the ids, on one line.")
@click.option("--special", is_flag=True, help="Read the text of special tokens as those tokens.")
def command(reference: str, text: str, ids: bool, special: bool) -> None:
    """Show the tokens of TEXT (or of standard input).

    \b
    Examples:
      lmworks tokenizer encode smollm2-135m "Hello, world"
      lmworks tokenizer encode lmworks-quickstart/tokenizer --ids < README.md
    """
    from lmworks.tokenizers.load import load_tokenizer

    tokenizer = load_tokenizer(reference)
    data: str | bytes = text or sys.stdin.buffer.read()
    found = tokenizer.encode(data, allow_special=special)
    if ids:
        click.echo(" ".join(map(str, found)))
        return
    for token_id in found:
        click.echo(f"{token_id:>7}  {tokenizer.decode_bytes([token_id])!r}")
    size = len(data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape"))
    click.echo(f"{len(found)} tokens, {size / max(1, len(found)):.2f} bytes per token")

"""`lmworks tokenizer convert REFERENCE --to FORMAT --out PATH`: one command for all writers."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("reference", metavar="TOKENIZER")
@click.option(
    "--to",
    required=True,
    type=click.Choice(["huggingface", "tiktoken", "gguf", "sentencepiece"]),
    help="The format.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The file to write; for huggingface, the folder.",
)
def command(reference: str, to: str, out: Path) -> None:
    """Write TOKENIZER in another format, read it again, and compare the ids.

    What the format has no place for is refused by name, and nothing is written then.

    \b
    Examples:
      lmworks tokenizer convert tokenizer.model --to huggingface --out runs/tokenizer
      lmworks tokenizer convert smollm2-135m --to gguf --out vocabulary.gguf
    """
    from lmworks.tokenizers.convert import convert
    from lmworks.tokenizers.load import load_tokenizer

    done = convert(load_tokenizer(reference), to, out)
    click.echo(f"wrote {done.path} ({done.what})")
    click.echo(f"read again, it gives the same ids for {done.num_texts:,} texts, every token's too")

"""`lmworks generate REF PROMPT`: a text, continued."""

from __future__ import annotations

import sys

import click


@click.command()
@click.argument("reference", metavar="MODEL")
@click.argument("prompt", default="", required=False)
@click.option(
    "--max-tokens", default=128, show_default=True, help="Longest continuation, in tokens."
)
@click.option("--temperature", default=0.8, show_default=True, help="0 is greedy.")
@click.option("--top-k", default=0, show_default=True, help="Only the k likeliest tokens; 0: all.")
@click.option("--top-p", default=1.0, show_default=True, help="Nucleus: this much probability.")
@click.option("--min-p", default=0.0, show_default=True, help="At least this share of the best.")
@click.option("--stop", multiple=True, help="End at this text. May be repeated.")
@click.option("--seed", type=int, help="Same seed, same text.")
def command(reference: str, prompt: str, **sampling: object) -> None:
    """Continue PROMPT (or standard input, or nothing) with MODEL, without a chat template.

    \b
    Examples:
      lmworks generate lmworks-quickstart/base "def read_file(path):"
      lmworks generate smollm2-135m "The capital of France is" --temperature 0 --max-tokens 8
    """
    from lmworks.inference.chat import load_chat

    if not prompt and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    model = load_chat(reference, max_batch=1)
    click.echo(prompt, nl=False)
    for delta in model.stream_text(prompt, **sampling):
        click.echo(delta.text, nl=False)
    click.echo()

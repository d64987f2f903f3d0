"""`lmworks generate REF PROMPT`: a text, continued."""

from __future__ import annotations

import sys
from typing import Any

import click

from lmworks.core.errors import UserError

_SPECULATE = "Guess tokens, check several at once: lookup, draft=REF or early-exit=K."


@click.command()
@click.argument("reference", metavar="MODEL")
@click.option("--base", default="", metavar="REF", help="The model under MODEL, an adapter.")
@click.argument("prompt", default="", required=False)
@click.option(
    "--max-tokens", default=128, show_default=True, help="Longest continuation, in tokens."
)
@click.option("--temperature", default=0.8, show_default=True, help="0 is greedy.")
@click.option("--top-k", default=0, show_default=True, help="Only the k likeliest tokens; 0: all.")
@click.option("--top-p", default=1.0, show_default=True, help="Nucleus: this much probability.")
@click.option("--min-p", default=0.0, show_default=True, help="At least this share of the best.")
@click.option("--typical-p", default=1.0, show_default=True, help="Typical: so much probability.")
@click.option("--repetition-penalty", default=1.0, show_default=True, help="Above 1: less of it.")
@click.option("--stop", multiple=True, help="End at this text. May be repeated.")
@click.option("--seed", type=int, help="Same seed, same text.")
@click.option("--json-schema", metavar="FILE", help="Only JSON that meets the schema in FILE.")
@click.option("--regex", help="Only what this expression matches as a whole.")
@click.option("--grammar", metavar="FILE", help="Only what the Lark grammar in FILE makes.")
@click.option("--speculate", default="", metavar="HOW", help=_SPECULATE)
@click.option(
    "--cache-type",
    type=click.Choice(["f32", "f16", "q8_0"]),
    default="f32",
    help="How keys and values are held: f32, f16, q8_0.",
)
@click.option("--beams", default=0, help="Search for the likeliest text with so many beams.")
@click.option(
    "--length-penalty", default=1.0, show_default=True, help="Of beams: above 0 favours long ones."
)
def command(
    reference: str,
    base: str,
    prompt: str,
    json_schema: str | None,
    regex: str | None,
    grammar: str | None,
    speculate: str,
    cache_type: str,
    beams: int,
    length_penalty: float,
    **sampling: Any,
) -> None:
    """Continue PROMPT (or standard input, or nothing) with MODEL, without a chat template.

    \b
    Examples:
      lmworks generate lmworks-quickstart/base "def read_file(path):"
      lmworks generate smollm2-135m "The capital of France is" --temperature 0 --max-tokens 8
      lmworks generate smollm2-135m "The capital of France is" --beams 4 --max-tokens 8
      lmworks generate smollm2-135m "My birthday: " --regex "[0-9]{4}-[0-9]{2}-[0-9]{2}"
    """
    from lmworks.inference.chat import load_chat
    from lmworks.inference.grammar_files import response_format

    form = response_format(json_schema=json_schema, regex=regex, grammar=grammar)

    if not prompt and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    model = load_chat(reference, base=base, max_batch=1, speculate=speculate, cache_type=cache_type)
    if beams:
        if form:
            raise UserError("--beams searches among all texts: leave out the form of the answer")
        _search(model, prompt, beams, length_penalty, sampling)
        return
    click.echo(prompt, nl=False)
    for delta in model.stream_text(prompt, response_format=form, **sampling):
        click.echo(delta.text, nl=False)
    click.echo()


def _search(
    model: Any, prompt: str, beams: int, length_penalty: float, sampling: dict[str, Any]
) -> None:
    """Print every beam with its score, the best first."""
    from lmworks.inference.beam_search import beam_search
    from lmworks.inference.local import LocalChat

    if not isinstance(model, LocalChat):
        raise UserError("--beams needs the weights here: a remote endpoint gives one text")
    engine, tokenizer = model.engine, model.engine.tokenizer
    ids = tokenizer.encode(prompt) or [tokenizer.bos_token_id or tokenizer.eos_token_id]
    for beam in beam_search(
        engine.model,
        ids,
        num_beams=beams,
        max_tokens=sampling["max_tokens"],
        eos_token_ids=engine.eos_token_ids,
        length_penalty=length_penalty,
        vocab_size=engine.vocab_size,
    ):
        words = tokenizer.decode([i for i in beam.ids if i not in engine.eos_token_ids])
        click.echo(f"{beam.score:8.3f}  {prompt}{words}")

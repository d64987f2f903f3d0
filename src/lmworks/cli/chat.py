"""`lmworks chat REF`: a conversation in the terminal."""

from __future__ import annotations

import click


@click.command()
@click.argument("reference", metavar="MODEL")
@click.option("--base", default="", metavar="REF", help="The model under MODEL, an adapter.")
@click.option("--system", default="", help="A system message to begin with.")
@click.option("--temperature", default=0.7, show_default=True, help="0 is greedy.")
@click.option("--max-tokens", default=512, show_default=True, help="Longest answer, in tokens.")
@click.option("--seed", type=int, help="Same seed, same answers.")
def command(
    reference: str, base: str, system: str, temperature: float, max_tokens: int, seed: int | None
) -> None:
    """Talk to MODEL: a folder, a GGUF file, hf:org/name, an alias, or https://host/v1#model.

    Ctrl-C stops an answer; /clear forgets the conversation; /exit or Ctrl-D leaves.

    \b
    Examples:
      lmworks chat smollm2-135m
      lmworks chat lmworks-quickstart/chat-q8 --temperature 0
      echo "What is a list?" | lmworks chat smollm2-135m
    """
    from lmworks.inference.chat import load_chat

    model = load_chat(reference, base=base, max_batch=1)
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    sampling = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    while (text := _ask()) is not None:
        if text == "/exit":
            return
        if text == "/clear":
            messages = list(start)
        elif text:
            messages.append({"role": "user", "content": text})
            answer = _answer(model, messages, sampling)
            messages.append({"role": "assistant", "content": answer})


def _ask() -> str | None:
    """A line from the person, or None at the end of the input."""
    import sys

    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.strip() if line else None
    try:
        return input("> ").strip()
    except EOFError:
        click.echo()
        return None


def _answer(model, messages, sampling) -> str:  # type: ignore[no-untyped-def]
    """Stream one answer to the screen; Ctrl-C ends it and keeps what was said."""
    pieces: list[str] = []
    stream = model.stream(messages, **sampling)
    try:
        for delta in stream:
            pieces.append(delta.text)
            click.echo(delta.text, nl=False)
    except KeyboardInterrupt:
        stream.close()
        click.echo(" [stopped]", nl=False)
    click.echo()
    return "".join(pieces)

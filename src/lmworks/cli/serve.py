"""`lmworks serve REF...`: OpenAI's API and the chat page."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("references", metavar="MODEL...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port; 0 takes a free one.")
@click.option("--open/--no-open", "open_page", default=False, help="Open the chat page.")
@click.option("--base", default="", metavar="REF", help="The model under those that are adapters.")
@click.option("--max-batch", default=8, show_default=True, help="Answers at the same time, each.")
@click.option("--max-positions", type=int, help="Prompt and answer together, in tokens.")
def command(
    references: tuple[str, ...],
    host: str,
    port: int,
    open_page: bool,
    base: str,
    max_batch: int,
    max_positions: int | None,
) -> None:
    """Serve one or more models: /v1/chat/completions, /v1/completions, /v1/models, a chat page.

    A model is called by its alias or folder name, or by NAME where it is given as NAME=REFERENCE.

    \b
    Examples:
      lmworks serve smollm2-135m --open
      lmworks serve mine=lmworks-quickstart/chat-q8 smollm2-135m --port 9000
    """
    from lmworks.cli.printing import reference_name
    from lmworks.core.errors import UserError
    from lmworks.inference.chat import load_chat
    from lmworks.models.adapters.base import is_adapter
    from lmworks.serving.run import bind, serve

    named = {}
    for text in references:
        name, equals, reference = text.partition("=")
        if not equals or "/" in name or ":" in name:
            name, reference = reference_name(text), text
        if name in named:
            raise UserError(f"two models are called {name!r}: give one as other-name={reference}")
        named[name] = reference
    bind(host, port).close()  # a port in use is told before a model is loaded
    models = {
        name: load_chat(
            reference,
            base=base if is_adapter(Path(reference)) else "",
            max_batch=max_batch,
            max_positions=max_positions,
        )
        for name, reference in named.items()
    }
    serve(models, host=host, port=port, open_page=open_page)

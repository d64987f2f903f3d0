"""`lmworks serve REF...`: OpenAI's API and the chat page."""

from __future__ import annotations

from pathlib import Path

import click

_DRAIN = "After a SIGTERM, let running answers finish for so long."
_GRACE = "How long a resumable stream waits for its reader."
_RESPONSES = "Keep the answers of /v1/responses in this SQLite file, not in memory."
_TRACES = "OpenTelemetry spans to OTEL_EXPORTER_OTLP_ENDPOINT."


@click.command()
@click.argument("references", metavar="MODEL...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port; 0 takes a free one.")
@click.option("--open/--no-open", "open_page", default=False, help="Open the chat page.")
@click.option("--base", default="", metavar="REF", help="The model under those that are adapters.")
@click.option("--max-batch", default=8, show_default=True, help="Answers at the same time, each.")
@click.option("--max-positions", type=int, help="Prompt and answer together, in tokens.")
@click.option("--drain", default=20.0, show_default=True, metavar="S", help=_DRAIN)
@click.option("--grace", default=30.0, show_default=True, metavar="S", help=_GRACE)
@click.option("--responses", type=click.Path(dir_okay=False), metavar="FILE", help=_RESPONSES)
@click.option("--log-json", is_flag=True, help="A JSON line per request and answer, to stderr.")
@click.option("--traces", is_flag=True, help=_TRACES)
def command(
    references: tuple[str, ...],
    host: str,
    port: int,
    open_page: bool,
    base: str,
    max_batch: int,
    max_positions: int | None,
    drain: float,
    grace: float,
    responses: str | None,
    log_json: bool,
    traces: bool,
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
    from lmworks.serving import json_log
    from lmworks.serving.run import bind, serve
    from lmworks.serving.tracing import otlp_tracing

    named = {}
    for text in references:
        name, equals, reference = text.partition("=")
        if not equals or "/" in name or ":" in name:
            name, reference = reference_name(text), text
        if name in named:
            raise UserError(f"two models are called {name!r}: give one as other-name={reference}")
        named[name] = reference
    if log_json:
        json_log.log_json()
    tracing = otlp_tracing() if traces else None
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
    serve(
        models,
        host=host,
        port=port,
        open_page=open_page,
        drain_s=drain,
        grace_s=grace,
        tracing=tracing,
        responses_path=responses,
    )

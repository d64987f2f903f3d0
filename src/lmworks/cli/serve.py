"""`lmworks serve REF...`: OpenAI's API and the chat page."""

from __future__ import annotations

from typing import Any

import click

from lmworks.cli.served_engines import engine_options, models_of
from lmworks.cli.served_models import load_first, model_options

_DRAIN = "After a SIGTERM, let running answers finish for so long."
_GRACE = "How long a resumable stream waits for its reader."
_RESPONSES = "Keep the answers of /v1/responses in this SQLite file, not in memory."
_TRACES = "OpenTelemetry spans to OTEL_EXPORTER_OTLP_ENDPOINT."


@click.command()
@click.argument("references", metavar="[MODEL]...", nargs=-1)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port; 0 takes a free one.")
@click.option("--open/--no-open", "open_page", default=False, help="Open the chat page.")
@model_options
@click.option("--drain", default=20.0, show_default=True, metavar="S", help=_DRAIN)
@click.option("--grace", default=30.0, show_default=True, metavar="S", help=_GRACE)
@click.option("--responses", type=click.Path(dir_okay=False), metavar="FILE", help=_RESPONSES)
@engine_options
@click.option("--log-json", is_flag=True, help="A JSON line per request and answer, to stderr.")
@click.option("--traces", is_flag=True, help=_TRACES)
@click.option(
    "--conversations",
    default="",
    metavar="FILE|off",
    help="Where the page keeps conversations; by default in your data folder.",
)
@click.option(
    "--encoder",
    default="",
    metavar="REF",
    help="Recall earlier turns by meaning, with this sentence encoder (minilm-l6).",
)
def command(
    references: tuple[str, ...],
    host: str,
    port: int,
    open_page: bool,
    preload: bool | None,
    drain: float,
    grace: float,
    responses: str | None,
    log_json: bool,
    traces: bool,
    conversations: str,
    encoder: str,
    engine: str,
    engine_url: str,
    engine_args: tuple[str, ...],
    **models: Any,
) -> None:
    """Serve models: chat, completions, embeddings, reranking, and a chat page.

    A model is called by its alias or folder name, or by NAME where it is given as NAME=REFERENCE.
    Adapters (NAME=FOLDER) of a model that is served as well, or of one base, share its weights.

    \b
    Examples:
      lmworks serve smollm2-135m --open
      lmworks serve mine=lmworks-quickstart/chat-q8 smollm2-135m --port 9000
      lmworks serve smollm2-135m legal=runs/legal poems=runs/poems minilm-l6
      lmworks serve --models models.yaml --memory-budget 4GB --keep-alive 10m
      lmworks serve qwen=hf:Qwen/Qwen2.5-7B-Instruct --engine vllm
    """
    from lmworks.serving import json_log
    from lmworks.serving.conversations.store import ConversationStore, file_of
    from lmworks.serving.model_pool import ModelPool
    from lmworks.serving.run import bind, serve
    from lmworks.serving.tracing import otlp_tracing

    if log_json:
        json_log.log_json()
    tracing = otlp_tracing() if traces else None
    bind(host, port).close()  # a port in use is told before a model is loaded
    store = ConversationStore(file_of(conversations))
    with models_of(engine, references, engine_url, engine_args, models) as served:
        if isinstance(served, ModelPool):
            load_first(served, preload)
        serve(
            served,
            host=host,
            port=port,
            open_page=open_page,
            drain_s=drain,
            grace_s=grace,
            tracing=tracing,
            responses_path=responses,
            conversations=store,
            encoder=encoder,
        )

"""`lmworks data why CORPUS WANTED`: the reason a document is missing."""

from __future__ import annotations

import click


@click.command()
@click.argument("corpus")
@click.argument("wanted")
def command(corpus: str, wanted: str) -> None:
    """Why the document WANTED (an id, file or title, or part of one) is not in CORPUS.

    \b
    Examples:
      lmworks data why runs/corpus notes/todo.txt
      lmworks data why lmworks-quickstart/corpus email.mime
    """
    from lmworks.data.why import explain

    found = explain(corpus, wanted)
    for row in found:
        click.echo(f"{row.source} ({row.title}): {row.rule}: {row.evidence}")
    if not found:
        click.echo(f"nothing called {wanted!r} was dropped: it is in the corpus, or was not read")

"""`lmworks studio [TOKENIZER...]`: the pages."""

from __future__ import annotations

import click


@click.command()
@click.argument("references", metavar="[TOKENIZER]...", nargs=-1)
@click.option("--port", default=8100, show_default=True, help="Port; 0 takes a free one.")
@click.option("--open/--no-open", "open_page", default=False, help="Open the home page.")
def command(references: tuple[str, ...], port: int, open_page: bool) -> None:
    """Pages that show what tokenizers and models do on your own text, for this machine only.

    Tokenizers can be named here (also as NAME=REFERENCE), or loaded on the page, as models are.
    Finished runs of `eval positions` are found below the folder in which it is started.

    \b
    Examples:
      lmworks studio smollm2-135m --open
      lmworks studio ours=runs/tokenizer smollm2-135m --port 9100
    """
    from lmworks.studio.run import run

    run(references, port=port, open_page=open_page)

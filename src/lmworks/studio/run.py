"""The Studio on a port of this machine, until Ctrl-C."""

from __future__ import annotations

from collections.abc import Sequence

from lmworks.core.progress import track
from lmworks.serving.run import bind, page_url, run_app

DEFAULT_PORT = 8100
_HOST = "127.0.0.1"


def run(
    references: Sequence[str] = (), *, port: int = DEFAULT_PORT, open_page: bool = False
) -> None:
    """Load tokenizers and serve the pages.

    Args:
        port: 0 takes a free one.
        open_page: open the home page in the browser.
    Raises: UserError when a tokenizer can't be had, or the port is in use.
    """
    listener = bind(_HOST, port)  # a port in use is told before anything is loaded
    try:
        from lmworks.studio.app import create_app
        from lmworks.studio.pages import PAGES

        app = create_app()
        shelf = app.state.studio.tokenizers
        with track("loading", total=len(references)) as bar:
            for reference in references:
                shelf.add(reference)
                bar.advance()
        url = page_url(_HOST, listener.getsockname()[1])
        width = max(map(len, ("home", *PAGES)))
        lines = [f"{'home':<{width}}  {url}"]
        lines += [f"{name:<{width}}  {url}/{name}" for name in PAGES]
        run_app(app, listener, lines, url if open_page else "")
    finally:
        listener.close()

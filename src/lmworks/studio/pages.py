"""The pages: the table, and how a file becomes what a browser gets.

A page is put together from its own HTML file and the parts that all pages share (`frame.css`,
`frame.html`, `serving/page_parts`), as one text with one inline style and one inline script, so
that the policy of `serving.page.page_headers` can name both by their hash.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from lmworks.serving.page import page_parts

# name: (target of its routes, title, one line). The page is NAME.html, at /NAME.
PAGES: dict[str, tuple[str, str, str]] = {
    "tokenizers": (
        "lmworks.studio.tokenizers:add_routes",
        "Tokenizers",
        "Your text, cut into tokens by any set of tokenizers, side by side: what differs, what "
        "it costs, and how fair it is to each language.",
    ),
    "attention": (
        "lmworks.studio.attention:add_routes",
        "Attention",
        "What each head of a model looks at in your text: all of them at a glance, one at a time, "
        "token by token.",
    ),
    "positions": (
        "lmworks.studio.positions:add_routes",
        "Positions",
        "How models are told where a token stands: pictures of each way, and how far each carries "
        "beyond the trained context.",
    ),
}


@functools.cache
def page_html(name: str) -> str:
    """The whole page: `home`, or a name of `PAGES`."""
    shared: dict[str, Any] = {"pages": PAGES, "name": name}
    return page_parts(Path(__file__).parent).get_template(f"{name}.html").render(shared)

"""The pages: the table, and how a file becomes what a browser gets.

A page is put together from its own HTML file and the parts that all pages share (`frame.css`,
`frame.js`, `frame.html`), as one text with one inline style and one inline script, so that the
policy of `serving.page.page_headers` can name both by their hash. The delimiters are `<% %>`,
since scripts are full of braces.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

# name: (target of its routes, title, one line). The page is NAME.html, at /NAME.
PAGES: dict[str, tuple[str, str, str]] = {
    "tokenizers": (
        "lmworks.studio.tokenizers:add_routes",
        "Tokenizers",
        "Your text, cut into tokens by any set of tokenizers, side by side: what differs, what "
        "it costs, and how fair it is to each language.",
    ),
}


@functools.cache
def page_html(name: str) -> str:
    """The whole page: `home`, or a name of `PAGES`."""
    shared: dict[str, Any] = {"pages": PAGES, "name": name}
    page: str = _environment().get_template(f"{name}.html").render(shared)
    return page


@functools.cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<%=",
        variable_end_string="%>",
        comment_start_string="<%#",
        comment_end_string="%>",
        trim_blocks=True,
    )

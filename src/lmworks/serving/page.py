"""How a page is put together, the chat page, and the headers that hold a page to its server.

The policy names the one script and the one style sheet by their hashes: whatever a model writes,
nothing else can run or load.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from lmworks.serving.service import Service

if TYPE_CHECKING:
    import jinja2


def page_parts(folder: Path) -> jinja2.Environment:
    """The files of `folder` and those that all pages share (`page_parts/`), as templates that put
    a page together. The delimiters are `<% %>`, since scripts are full of braces."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent / "page_parts"]),
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


@functools.cache
def chat_page() -> str:
    """The page's HTML: one text, with one style and the scripts inline."""
    return page_parts(Path(__file__).parent / "chat_page").get_template("chat.html").render()


@functools.cache
def page_headers(html: str) -> dict[str, str]:
    """Content-Security-Policy and its neighbours, for a page whose script and style are inline."""
    policy = (
        f"default-src 'none'; script-src {_hashes(html, 'script')}; "
        f"style-src {_hashes(html, 'style')}; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _hashes(html: str, tag: str) -> str:
    blocks = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", html, flags=re.DOTALL)
    digests = (hashlib.sha256(block.encode()).digest() for block in blocks)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def add_routes(app: FastAPI, service: Service) -> None:
    """See `apis`."""

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(chat_page(), headers=page_headers(chat_page()))

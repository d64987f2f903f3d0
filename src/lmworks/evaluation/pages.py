"""Self-contained pages out of templates: escaped throughout, nothing to run, nothing to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmworks.evaluation.report import clean


def render_page(template: str, **values: Any) -> str:
    """The page that `template`, a file beside this one, makes of the values."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page: str = environment.get_template(template).render(values)
    return page

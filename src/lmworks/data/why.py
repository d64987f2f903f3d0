"""Why a document is not in a corpus: the rows of `dropped.jsonl` that speak of it."""

from __future__ import annotations

from pathlib import Path

from lmworks.core.errors import UserError
from lmworks.data.documents import Dropped, read_dropped


def explain(corpus: str | Path, wanted: str) -> list[Dropped]:
    """Drops whose id, source or title is `wanted`, else those that hold it as a part.

    Raises: UserError when the folder is no corpus, or a row of it is damaged.
    """
    path = Path(corpus) / "dropped.jsonl"
    if not path.is_file():
        raise UserError(f"{corpus} is no corpus: {path.name} is missing; see `lmworks data build`")
    exact, partly = [], []
    for row in read_dropped(path):
        if wanted in (row.id, row.source, row.title):
            exact.append(row)
        elif wanted in row.source or wanted in row.title:
            partly.append(row)
    return exact or partly

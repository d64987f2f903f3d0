"""Why a document is not in a corpus: the rows of `dropped.jsonl` that speak of it."""

from __future__ import annotations

import json
from pathlib import Path

from lmworks.core.errors import UserError
from lmworks.data.documents import Dropped


def explain(corpus: str | Path, wanted: str) -> list[Dropped]:
    """Drops whose id, source or title is `wanted`, or holds it as a part.

    Raises: UserError when the folder is no corpus.
    """
    path = Path(corpus) / "dropped.jsonl"
    if not path.is_file():
        raise UserError(f"{corpus} is no corpus: {path.name} is missing")
    with open(path, encoding="utf-8") as file:
        rows = [Dropped(**json.loads(line)) for line in file]
    exact = [row for row in rows if wanted in (row.id, row.source, row.title)]
    return exact or [row for row in rows if wanted in row.source or wanted in row.title]

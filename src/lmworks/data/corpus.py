"""Stage `build_corpus`: documents read, filtered, deduplicated, split; every drop has a reason."""

from __future__ import annotations

import dataclasses
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage
from lmworks.data.documents import Document, Dropped, stable_share, write_documents

_MIN_BYTES = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """A corpus from a folder of text, Markdown, HTML, PDF or source files.

    Without --folder it reads the documentation that comes with Python.

    Examples:
        lmworks data build --folder ~/notes --out runs/corpus
        lmworks data build --out runs/python-docs
        lmworks data build --folder book.txt --heldout-share 0.1
    """

    folder: str = option("", role=REFERENCE, help="folder or file; empty reads Python's own docs")
    max_megabytes: float = option(0.0, help="keep about this much text, chosen evenly; 0 keeps all")
    heldout_share: float = option(0.06, help="share of the text to hold out for measuring")
    seed: int = option(0, help="which documents are held out, and their order")
    python: str = option(platform.python_version(), help="whose documentation was read", flag=False)


@stage("build_corpus", makes="corpus")
def build_corpus(config: CorpusConfig, run: Run) -> dict[str, Any]:
    """Read, judge, split, write; see CorpusConfig."""
    from lmworks.data.deduplicate import drop_duplicates
    from lmworks.data.filters.base import drop_poor
    from lmworks.data.split import cut_large, split_heldout

    if not 0 < config.heldout_share < 1:
        raise UserError(f"heldout_share = {config.heldout_share}: a share between 0 and 1")
    rows = list(drop_duplicates(drop_poor(_read(config, run))))
    dropped = [row for row in rows if isinstance(row, Dropped)]
    documents = [row for row in rows if isinstance(row, Document)]
    where = config.folder or "Python's documentation"
    _refuse_too_little(where, documents, dropped)
    documents, left_out = _limit(documents, config)
    train, heldout = split_heldout(
        cut_large(documents), share=config.heldout_share, seed=config.seed
    )
    write_documents(run.folder / "train.jsonl", train)
    write_documents(run.folder / "heldout.jsonl", heldout)
    write_documents(run.folder / "dropped.jsonl", [*dropped, *left_out])
    return {
        "num_documents": len(train) + len(heldout),
        "num_heldout": len(heldout),
        "num_dropped": len(dropped) + len(left_out),
        "dropped_by_rule": dict(Counter(row.rule for row in [*dropped, *left_out]).most_common()),
        "train_bytes": num_bytes(train),
        "heldout_bytes": num_bytes(heldout),
    }


def num_bytes(documents: Iterable[Document]) -> int:
    """Bytes of all texts as UTF-8."""
    return sum(len(d.text.encode("utf-8", "surrogatepass")) for d in documents)


def _read(config: CorpusConfig, run: Run) -> Iterable[Document | Dropped]:
    if not config.folder:
        from lmworks.data.python_docs import read_python_docs

        return read_python_docs()
    from lmworks.data.folder import read_folder

    return read_folder(Path(run.inputs["folder"]))


def _refuse_too_little(
    where: str, documents: Sequence[Document], dropped: Sequence[Dropped]
) -> None:
    if not documents and not dropped:
        raise UserError(f"{where} holds no files: name a folder with documents")
    reasons = Counter(row.rule for row in dropped)
    told = ", ".join(f"{count} {rule.replace('_', ' ')}" for rule, count in reasons.most_common(4))
    dropped_told = f" ({len(dropped)} files dropped: {told})" if dropped else ""
    size = num_bytes(documents)
    if not documents:
        example = dropped[0]
        raise UserError(
            f"{where} holds no readable text{dropped_told}; "
            f"{example.source}, for example: {example.evidence}"
        )
    if size < _MIN_BYTES:
        raise UserError(
            f"{where} holds too little text: {size} bytes, at least {_MIN_BYTES} are needed"
            f"{dropped_told}"
        )


def _limit(documents: list[Document], config: CorpusConfig) -> tuple[list[Document], list[Dropped]]:
    """Thin a corpus that is larger than asked for, every document with the same chance."""
    size, most = num_bytes(documents), config.max_megabytes * 1e6
    if not most or size <= most:
        return documents, []
    kept, left_out = [], []
    for document in documents:
        if stable_share("limit", str(config.seed), document.id) < most / size:
            kept.append(document)
        else:
            left_out.append(
                Dropped(
                    id=document.id,
                    source=document.source,
                    title=document.title,
                    rule="over the limit",
                    evidence=f"{size / 1e6:.1f} MB, asked for {config.max_megabytes:g}",
                )
            )
    return (kept, left_out) if kept else (documents[:1], left_out[1:])

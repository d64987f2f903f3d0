"""Stage `build_corpus`: documents read, judged, deduplicated, split; every drop has a reason.

Documents pass one by one through a file on disk, so memory does not grow with the text. Which are
kept and held out is decided by hashes of names, not by drawing lots in order: a document that is
added moves no other.
"""

from __future__ import annotations

import dataclasses
import math
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage
from lmworks.data.documents import Document, Dropped, stable_share, write_documents
from lmworks.data.filters.config import QualityConfig
from lmworks.data.folder import FolderConfig, hash_folder, read_folder
from lmworks.data.spool import Entry, Spool

_MIN_BYTES = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """A corpus from a folder of text, Markdown, HTML, PDF, JSON, .po or source files.

    Without --folder it reads the documentation that comes with Python.

    Examples:
        lmworks data build --folder ~/notes --out runs/corpus
        lmworks data build --out runs/python-docs
        lmworks data build --folder book.txt --heldout-share 0.1
        lmworks data build --folder 'pypi:licensedcode-data#licensedcode/data/licenses'
    """

    folder: str = option("", role=REFERENCE, help="folder or file; empty reads Python's own docs")
    max_megabytes: float = option(0.0, help="keep about this much text, chosen evenly; 0 keeps all")
    heldout_share: float = option(0.06, help="share of the groups to hold out for measuring")
    seed: int = option(0, help="which documents are held out, and their order")
    quality: QualityConfig = option(QualityConfig(), help="thresholds of the quality rules")
    files: FolderConfig = option(FolderConfig(), help="which files are read")
    python: str = option(platform.python_version(), help="whose documentation is read", flag=False)


@stage("build_corpus", makes="corpus", version=2, hash_input=hash_folder)
def build_corpus(config: CorpusConfig, run: Run) -> dict[str, Any]:
    """Read, judge, split, write; see CorpusConfig."""
    _check(config)
    where = config.folder or "Python's documentation"
    with Spool(run.work / "kept.jsonl") as kept:
        dropped = _collect(config, run, kept)
        _refuse_too_little(where, kept.entries, dropped)
        entries, left_out = _limit(kept, config)
        dropped += left_out
        train, heldout = _split(kept, entries, config)
        train_size, heldout_size = _write(run.folder, train, heldout, dropped)
    if not (train_size.num_bytes and heldout_size.num_bytes):
        raise UserError(f"{where} repeats the same few paragraphs: nothing is left to hold out")
    write_documents(run.folder / "dropped.jsonl", dropped)
    return {
        "num_documents": train_size.num_documents + heldout_size.num_documents,
        "num_heldout": heldout_size.num_documents,
        "num_dropped": len(dropped),
        "dropped_by_rule": dict(Counter(row.rule for row in dropped).most_common()),
        "train_bytes": train_size.num_bytes,
        "heldout_bytes": heldout_size.num_bytes,
    }


def _check(config: CorpusConfig) -> None:
    if not 0 < config.heldout_share < 1:
        raise UserError(f"heldout_share = {config.heldout_share}: a share between 0 and 1")
    if not (config.max_megabytes >= 0 and math.isfinite(config.max_megabytes)):
        raise UserError(f"max_megabytes = {config.max_megabytes}: a size from 0 (all) up")
    if not config.folder and config.python != platform.python_version():
        raise UserError(
            f"python = {config.python}, but this is Python {platform.python_version()}: "
            "run it with that one, or leave the setting out"
        )


def _collect(config: CorpusConfig, run: Run, kept: Spool) -> list[Dropped]:
    """Put what is kept into the spool; the rest is returned."""
    from lmworks.data.deduplicate import drop_duplicates
    from lmworks.data.filters.base import drop_poor

    dropped = []
    for row in drop_duplicates(drop_poor(_read(config, run), config.quality)):
        if isinstance(row, Dropped):
            dropped.append(row)
        else:
            kept.append(row)
    return dropped


def _read(config: CorpusConfig, run: Run) -> Iterator[Document | Dropped]:
    if config.folder:
        return read_folder(Path(run.inputs["folder"]), config.files)
    from lmworks.data.python_docs import read_python_docs

    return read_python_docs()


def _refuse_too_little(where: str, entries: Sequence[Entry], dropped: Sequence[Dropped]) -> None:
    if not entries and not dropped:
        raise UserError(f"{where} holds no files: name a folder with documents")
    size = sum(entry.num_bytes for entry in entries)
    if size >= _MIN_BYTES:
        return
    reasons = Counter(row.rule for row in dropped).most_common(4)
    told = ", ".join(f"{count} {rule.replace('_', ' ')}" for rule, count in reasons)
    files = "1 file" if len(dropped) == 1 else f"{len(dropped)} files"
    why = (
        f": {files} dropped: {told} ({dropped[0].source}, for one: {dropped[0].evidence})"
        if dropped
        else ""
    )
    if not entries:
        raise UserError(f"{where} holds no readable text{why}")
    raise UserError(
        f"{where} holds too little text, {size} bytes: at least {_MIN_BYTES} are needed{why}"
    )


def _limit(kept: Spool, config: CorpusConfig) -> tuple[list[Entry], list[Dropped]]:
    """Thin a corpus that is larger than asked for, every document with the same chance."""
    size, most = sum(entry.num_bytes for entry in kept.entries), config.max_megabytes * 1e6
    if not most or size <= most:
        return kept.entries, []
    evidence = f"{size / 1e6:.1f} MB, asked for {config.max_megabytes:g}"
    coins = {e.id: stable_share("limit", str(config.seed), e.id) for e in kept.entries}
    share = max(most / size, min(coins.values()))  # at least one document stays
    entries, left_out = [], []
    for entry in kept.entries:
        if coins[entry.id] <= share:
            entries.append(entry)
        else:
            left_out.append(Dropped.of(kept.read(entry), "over_limit", evidence))
    return entries, left_out


def _split(
    kept: Spool, entries: Sequence[Entry], config: CorpusConfig
) -> tuple[Iterable[Document], Iterable[Document]]:
    """(training, held-out) in shuffled order; few documents are read whole and cut."""
    from lmworks.data.split import FEW_GROUPS, heldout_groups, shuffled, split_by_paragraphs

    share, seed = config.heldout_share, config.seed
    sizes: Counter[str] = Counter()
    for entry in entries:
        sizes[entry.group] += entry.num_bytes
    if len(sizes) < FEW_GROUPS:
        documents = [kept.read(entry) for entry in entries]
        train, heldout = split_by_paragraphs(documents, share=share, seed=seed)
        return shuffled(train, seed=seed), shuffled(heldout, seed=seed)
    chosen = heldout_groups(sizes, share=share, seed=seed)
    order = shuffled(entries, seed=seed)
    return (
        _Spooled(kept, [entry for entry in order if entry.group not in chosen]),
        _Spooled(kept, [entry for entry in order if entry.group in chosen]),
    )


class _Spooled:
    """Documents read from the spool each time they are gone through."""

    def __init__(self, spool: Spool, entries: Sequence[Entry]) -> None:
        self._spool, self._entries = spool, entries

    def __iter__(self) -> Iterator[Document]:
        return map(self._spool.read, self._entries)


@dataclasses.dataclass
class _Size:
    num_documents: int = 0
    num_bytes: int = 0

    def count(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            self.num_documents += 1
            self.num_bytes += document.num_bytes
            yield document


def _write(
    folder: Path, train: Iterable[Document], heldout: Iterable[Document], dropped: list[Dropped]
) -> tuple[_Size, _Size]:
    """Write both sides; held-out text that training shows goes into `dropped`."""
    from lmworks.data.leakage import Leakage

    leakage, train_size, heldout_size = Leakage(heldout), _Size(), _Size()
    write_documents(folder / "train.jsonl", train_size.count(leakage.watch(train)))
    clean = []
    for row in map(leakage.without, heldout):
        if isinstance(row, Dropped):
            dropped.append(row)
        else:
            clean.append(row)
    write_documents(folder / "heldout.jsonl", heldout_size.count(clean))
    return train_size, heldout_size

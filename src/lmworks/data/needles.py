"""Stage `plant_needles`: a corpus in which a model can learn to look back and copy.

Passages of a corpus, each with a sentence put in that gives a key its value, and at the end the
beginning of that sentence and the value. Keys and values are words of the corpus drawn anew for
each passage, so that the value can be known from the sentence alone: a model that lowers its loss
there has learned to find it. What `eval needle` then asks has the same form; give it the same
sentence.

Passages all have `characters`, or lengths drawn evenly on a logarithmic scale from `shortest` on: a
model finds over a short distance first, and then further and further. The rest of a document that
is shorter than a passage is left out.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage
from lmworks.data.documents import Document, read_documents, stable_id, write_documents

if TYPE_CHECKING:
    import numpy as np

NEEDLE = "The secret word of {key} is {value}."
_WORD = re.compile(r"[^\W\d_]{4,12}")
_LEAST_WORDS = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlantNeedlesConfig:
    """A corpus with a sentence to find in every passage, for training on long contexts.

    Examples:
        lmworks data needles --corpus runs/corpus --out runs/needles
        lmworks data needles --corpus runs/corpus --characters 4000 --needle '{key}: {value}'
    """

    corpus: str = option(role=REFERENCE, help="corpus folder (train.jsonl, heldout.jsonl)")
    characters: int = option(2000, help="text of a passage, without what is put in")
    shortest: int = option(0, help="lengths from this to --characters, short ones as often as long")
    needle: str = option(NEEDLE, help="the sentence, with {key} and then {value}")
    words: int = option(1, help="words of a value")
    seed: int = option(0, help="same seed, same bytes")


@stage("plant_needles", makes="corpus")
def plant_needles(config: PlantNeedlesConfig, run: Run) -> dict[str, Any]:
    """Cut, plant, write; see PlantNeedlesConfig."""
    if config.characters < 1 or config.words < 1:
        raise UserError("characters and words must be at least 1")
    if not 0 <= config.shortest <= config.characters:
        raise UserError(
            f"shortest = {config.shortest}: from 0 to --characters, {config.characters}"
        )
    check_needle(config.needle)
    counts = {}
    words = needle_words(d.text for d in _documents(run.inputs["corpus"], "train"))
    for part in ("train", "heldout"):
        planted = list(_planted(_documents(run.inputs["corpus"], part), words, config, part))
        if not planted:
            raise UserError(
                f"{config.corpus}: no document of {part}.jsonl has {config.characters} characters"
            )
        write_documents(run.folder / f"{part}.jsonl", planted)
        counts[f"num_{part}"] = len(planted)
    write_documents(run.folder / "dropped.jsonl", [])
    return counts


def _documents(folder: Path, part: str) -> Iterator[Document]:
    return read_documents(folder / f"{part}.jsonl")


def check_needle(needle: str) -> None:
    """Raises: UserError unless the sentence has a place for a key and, after it, for a value."""
    before, value, _ = needle.partition("{value}")
    if not value or "{key}" not in before:
        raise UserError("needle must hold {key} and, after it, {value}")


def needle_words(texts: Iterable[str]) -> list[str]:
    """The words of 4 to 12 letters in the texts, sorted. Raises: UserError for too few."""
    words = sorted({word for text in texts for word in _WORD.findall(text)})
    if len(words) < _LEAST_WORDS:
        raise UserError(
            f"the text holds {len(words)} different words of 4 to 12 letters; {_LEAST_WORDS} are "
            "needed for keys and values"
        )
    return words


def draw_needle(
    random: np.random.Generator, needle: str, words: Sequence[str], num_words: int
) -> tuple[str, str, str]:
    """What stands before a drawn value with its key, the value, what stands behind it."""
    drawn = [words[i] for i in random.choice(len(words), num_words + 1, replace=False)]
    before, _, behind = (part.replace("{key}", drawn[0]) for part in needle.partition("{value}"))
    return before, " ".join(drawn[1:]), behind


def _planted(
    documents: Iterable[Document], words: Sequence[str], config: PlantNeedlesConfig, part: str
) -> Iterator[Document]:
    import numpy as np

    for document in documents:
        for start, end in _passages(document, config):
            name = stable_id(document.id, str(start), part)
            random = np.random.default_rng([config.seed, int(name, 16)])
            before, value, behind = draw_needle(random, config.needle, words, config.words)
            text = document.text[start:end]
            at = _place(text, int(random.integers(len(text) + 1)))
            yield dataclasses.replace(
                document,
                id=name,
                text=f"{text[:at]}\n{before}{value}{behind}\n{text[at:]}\n{before}{value}{behind}",
            )


def _passages(document: Document, config: PlantNeedlesConfig) -> Iterator[tuple[int, int]]:
    """Where the passages of a document begin and end."""
    import numpy as np

    shortest = config.shortest or config.characters
    random = np.random.default_rng([config.seed, int(stable_id(document.id), 16)])
    start = 0
    while True:
        span = math.log(config.characters / shortest)
        end = start + round(shortest * math.exp(span * random.random()))
        if end > len(document.text):
            return
        yield start, end
        start = end


def _place(text: str, at: int) -> int:
    """The end of the line before `at`, or of the word: no word is cut in two."""
    line = text.rfind("\n", 0, at) + 1
    return line if line else text.rfind(" ", 0, at) + 1

"""Stage `draw_questions`: question and answer pairs that stand in the documents already.

No model writes them: rules find places where a text answers a question (a docstring, a definition,
a heading), so every answer is a quotation. The last, weak rule joins only when the others find
little in the whole corpus, and only for documents they found nothing in.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.files import atomic_open
from lmworks.core.stages import Run, stage
from lmworks.core.tables import load_target
from lmworks.data.documents import Document, read_documents, stable_id, stable_share
from lmworks.data.drawing.base import RULES, Pair, Rule

_LAST_RESORT = "opening"
_ENOUGH = 200  # with fewer pairs, tuning teaches those pairs and no manner of answering


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionsConfig:
    """Draw question and answer pairs from a corpus, for instruction tuning.

    Held-out documents give the held-out questions.

    Examples:
        lmworks data questions --corpus runs/corpus --out runs/questions
        lmworks data questions --corpus runs/corpus --max-questions 500
    """

    corpus: str = option(role=REFERENCE, help="corpus folder")
    max_questions: int = option(0, help="keep about this many to train on; 0 keeps all")
    seed: int = option(0, help="which are kept, and their order")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Drawn:
    rule: str
    document: Document
    pair: Pair

    @property
    def id(self) -> str:
        return stable_id(self.document.id, self.pair.question)

    def row(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "document": self.document.group,
            "rule": self.rule,
            "messages": [
                {"role": "user", "content": self.pair.question},
                {"role": "assistant", "content": self.pair.answer},
            ],
        }


@stage("draw_questions", makes="dataset", version=2)
def draw_questions(config: QuestionsConfig, run: Run) -> dict[str, Any]:
    """Draw, deduplicate, write; see QuestionsConfig."""
    corpus = run.inputs["corpus"]
    if not (corpus / "train.jsonl").is_file():
        raise UserError(f"{corpus} is no corpus: train.jsonl is missing; see `lmworks data build`")
    if config.max_questions < 0:
        raise UserError(f"max_questions = {config.max_questions}: a number from 0 (all) up")
    rules = _rules(corpus)
    seen: set[str] = set()
    metrics: dict[str, Any] = {}
    by_rule: Counter[str] = Counter()
    # Held-out first: a question asked there is never trained on.
    for part in ("heldout", "train"):
        drawn = list(draw(read_documents(corpus / f"{part}.jsonl"), rules, seen))
        drawn.sort(key=lambda d: (stable_share(str(config.seed), d.id), d.id))
        if part == "train" and config.max_questions:
            drawn = drawn[: config.max_questions]
        with atomic_open(run.folder / f"{part}.jsonl", "w", encoding="utf-8", newline="\n") as file:
            for each in drawn:
                file.write(json.dumps(each.row(), ensure_ascii=False) + "\n")
        metrics[f"num_{part}"] = len(drawn)
        by_rule.update(each.rule for each in drawn)
    if not metrics["num_train"]:
        raise UserError(f"no question could be drawn from {corpus}: its texts hold no sentences")
    return metrics | {"by_rule": dict(by_rule.most_common())}


def _rules(corpus: Path) -> dict[str, Rule]:
    """The good rules; with the last resort when those find too little in the whole corpus."""
    rules: dict[str, Rule] = {name: load_target(target) for name, target in RULES.items()}
    good = {name: rule for name, rule in rules.items() if name != _LAST_RESORT}
    drawn = draw(read_documents(corpus / "train.jsonl"), good, set())
    return good if len(list(itertools.islice(drawn, _ENOUGH))) == _ENOUGH else rules


def draw(
    documents: Iterable[Document], rules: Mapping[str, Rule], seen: set[str]
) -> Iterator[_Drawn]:
    """Pairs whose question is not in `seen` yet, which grows; the last resort only where the
    other rules gave none."""
    for document in documents:
        found = False
        for name, rule in rules.items():
            if name == _LAST_RESORT and found:
                continue
            for pair in rule(document):
                if (key := pair.question.casefold()) not in seen:
                    seen.add(key)
                    found = True
                    yield _Drawn(rule=name, document=document, pair=pair)

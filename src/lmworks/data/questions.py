"""Stage `draw_questions`: question and answer pairs that stand in the documents already.

No model writes them: rules find places where a text answers a question (a docstring, a definition,
a heading), so every answer is a quotation. The rules are tried in the order of `RULES`; the last,
weak one is for documents that gave nothing else.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.files import atomic_open
from lmworks.core.stages import Run, stage
from lmworks.core.tables import load_target
from lmworks.data.documents import Document, read_documents, stable_id, stable_share
from lmworks.data.drawing.base import RULES, Pair, Rule

_LAST_RESORT = "opening"


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


@stage("draw_questions", makes="dataset")
def draw_questions(config: QuestionsConfig, run: Run) -> dict[str, Any]:
    """Draw, deduplicate, write; see QuestionsConfig."""
    corpus = run.inputs["corpus"]
    if not (corpus / "train.jsonl").is_file():
        raise UserError(f"{corpus} is no corpus: train.jsonl is missing; see `lmworks data build`")
    seen: set[str] = set()
    metrics: dict[str, Any] = {}
    by_rule: Counter[str] = Counter()
    # Held-out first: a question asked there is never trained on.
    for part in ("heldout", "train"):
        drawn = list(_distinct(draw(read_documents(corpus / f"{part}.jsonl")), seen))
        drawn.sort(key=lambda d: (stable_share(str(config.seed), d.id), d.id))
        if part == "train" and config.max_questions:
            drawn = drawn[: config.max_questions]
        with atomic_open(run.folder / f"{part}.jsonl", "w", encoding="utf-8") as file:
            for each in drawn:
                file.write(json.dumps(each.row(), ensure_ascii=False) + "\n")
        metrics[f"num_{part}"] = len(drawn)
        by_rule.update(each.rule for each in drawn)
    if not metrics["num_train"]:
        raise UserError(f"no question could be drawn from {corpus}: its texts hold no sentences")
    return metrics | {"by_rule": dict(by_rule.most_common())}


def draw(documents: Iterable[Document]) -> Iterator[_Drawn]:
    """Pairs of every document, by the first rules that find any."""
    rules: dict[str, Rule] = {name: load_target(target) for name, target in RULES.items()}
    last = rules.pop(_LAST_RESORT)
    for document in documents:
        found = False
        for name, rule in rules.items():
            for pair in rule(document):
                found = True
                yield _Drawn(rule=name, document=document, pair=pair)
        if not found:
            for pair in last(document):
                yield _Drawn(rule=_LAST_RESORT, document=document, pair=pair)


def _distinct(drawn: Iterable[_Drawn], seen: set[str]) -> Iterator[_Drawn]:
    for each in drawn:
        key = each.pair.question.casefold()
        if key not in seen:
            seen.add(key)
            yield each

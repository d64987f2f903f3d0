"""Stage `draw_preferences`: pairs of answers of which the better one is known, out of questions.

No judge is asked: the better answer is the one that stands in the documents. What it is set against
is planted, so that a model trained on the pairs can be measured against what is true.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.files import atomic_open
from lmworks.core.stages import Run, stage
from lmworks.data.documents import stable_id, stable_share

_NAME = re.compile(r"[\w.]*[._][\w.]*\w")  # base64.b85decode, max_length
_NEIGHBOURS = 8  # answers of like length among which the wrong one is drawn


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferencesConfig:
    """Draw pairs of answers from questions: the better one is the documents' own.

    `true` sets it against the answer to another question of the same wording and like length, so
    that neither manner nor length gives it away; `short` against itself with such an answer behind.
    Held-out questions give held-out pairs.

    Examples:
        lmworks data preferences --questions runs/questions --out runs/pairs
        lmworks data preferences --questions runs/questions --kind short --max-pairs 500
    """

    questions: str = option(role=REFERENCE, help="dataset folder of `data questions`")
    kind: Literal["true", "short"] = option("true", help="what makes an answer the better one")
    max_pairs: int = option(0, help="keep this many to train on; 0 keeps all")
    seed: int = option(0, help="which answers are set against each other, and the order")


@stage("draw_preferences", makes="dataset")
def draw_preferences(config: PreferencesConfig, run: Run) -> dict[str, Any]:
    """Pair and write; see PreferencesConfig."""
    if config.max_pairs < 0:
        raise UserError(f"max_pairs = {config.max_pairs}: a number from 0 (all) up")
    metrics: dict[str, Any] = {}
    for part in ("train", "heldout"):
        path = run.inputs["questions"] / f"{part}.jsonl"
        if not path.is_file():
            raise UserError(f"{path} is missing: give a dataset made by `lmworks data questions`")
        pairs = list(draw_pairs(list(_questions(path)), config.kind, config.seed))
        if part == "train" and config.max_pairs:
            pairs = pairs[: config.max_pairs]
        with atomic_open(run.folder / f"{part}.jsonl", "w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
        metrics[f"num_{part}"] = len(pairs)
    if not metrics["num_train"]:
        raise UserError("no two questions are worded alike, so no pair could be drawn")
    return metrics


def _questions(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of one question and one answer."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                question, answer = row["messages"]
                asked = (question["role"], answer["role"]) == ("user", "assistant")
                texts = (str(question["content"]).strip(), str(answer["content"]).strip())
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number}: not a question and its answer") from error
            if asked and all(texts):
                yield row


def draw_pairs(rows: Sequence[Mapping[str, Any]], kind: str, seed: int) -> Iterator[dict[str, Any]]:
    """A pair for each question that another one is worded like, in an order that the seed decides.

    Args:
        rows: each with `messages`, a question and its answer.
    """
    alike: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        alike[_NAME.sub("_", row["messages"][0]["content"])].append(row)
    found = []
    for group in alike.values():
        group.sort(key=lambda row: (len(_answer(row)), _id(row)))
        for index, row in enumerate(group):
            near = group[max(0, index - _NEIGHBOURS) : index + _NEIGHBOURS + 1]
            others = [other for other in near if _answer(other) != _answer(row)]
            if others:
                other = min(others, key=lambda o: stable_share(str(seed), _id(row), _id(o)))
                found.append(_pair(row, _answer(other), kind))
    found.sort(key=lambda pair: (stable_share(str(seed), pair["id"]), pair["id"]))
    yield from found


def _answer(row: Mapping[str, Any]) -> str:
    return str(row["messages"][1]["content"])


def _id(row: Mapping[str, Any]) -> str:
    return str(row.get("id") or stable_id(row["messages"][0]["content"], _answer(row)))


def _pair(row: Mapping[str, Any], other: str, kind: str) -> dict[str, Any]:
    question, answer = row["messages"]
    wrong = other if kind == "true" else f"{_answer(row)} {other}"
    return {
        "id": _id(row),
        "document": row.get("document", ""),
        "prompt": [question],
        "chosen": [answer],
        "rejected": [{"role": "assistant", "content": wrong}],
    }

"""Stage `collect_feedback`: what people said of answers, filtered, as data to train on."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.files import atomic_open
from lmworks.core.folders import data_folder
from lmworks.core.stages import Run, stage
from lmworks.serving.feedback.reading import feedback_digest, read_feedback
from lmworks.serving.feedback.rows import answer_rows, is_heldout, pair_rows, vote_rows
from lmworks.serving.feedback.rules import FeedbackLimits
from lmworks.serving.feedback.verdicts import judge


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectFeedbackConfig:
    """Turn thumbs and corrections that a server collected into data to train on.

    Makes three datasets: answers (corrections, and liked answers) for `train sft`, pairs for
    `train prefer`, votes for `train prefer --objective kto`; dropped.jsonl says what was left out,
    and why. Which questions are held out never changes, however much is said later.

    Examples:
        lmworks data feedback --out runs/feedback
        lmworks data feedback --conversations chats.db --set limits.min_agreement=0.9
        lmworks train sft --model smollm2-135m --questions runs/feedback/answers
    """

    conversations: str = option(
        "", role=REFERENCE, help="database of `serve`, or a .jsonl file; empty takes your own"
    )
    liked: bool = option(True, help="learn answers that were liked, beside corrections")
    heldout_share: float = option(0.2, help="share of the questions to hold out for measuring")
    seed: int = option(0, help="which questions are held out")
    limits: FeedbackLimits = option(FeedbackLimits(), help="what is left out", flag=False)

    def __post_init__(self) -> None:
        if not self.conversations:
            # A reference like any other, so that the fingerprint covers what it holds.
            own = data_folder() / "conversations.db"
            object.__setattr__(self, "conversations", str(own))


@stage("collect_feedback", makes="feedback", hash_input=feedback_digest)
def collect_feedback(config: CollectFeedbackConfig, run: Run) -> dict[str, Any]:
    """Read, filter, count, split, write; see CollectFeedbackConfig."""
    if not 0 <= config.heldout_share < 1:
        raise UserError(f"heldout_share = {config.heldout_share}: a share from 0 to below 1")
    path = run.inputs["conversations"]
    feedback = list(read_feedback(path))
    if not feedback:
        raise UserError(
            f"{path}: nobody has said anything of an answer yet: use the thumbs or the pencil "
            "under an answer of the chat page, or POST /v1/feedback"
        )
    judgements, left_out = judge(feedback, config.limits)
    by_rule = Counter(one.rule for one in left_out)
    metrics: dict[str, Any] = {
        "num_feedback": len(feedback),
        "num_dropped": len(left_out),
        "dropped_by_rule": dict(by_rule.most_common()),
    }
    _write(run.folder / "dropped.jsonl", map(dataclasses.asdict, left_out))
    kinds = {
        "answers": answer_rows(judgements, liked=config.liked),
        "pairs": pair_rows(judgements),
        "votes": vote_rows(judgements),
    }
    for kind, rows in kinds.items():
        parts: dict[str, list[Mapping[str, Any]]] = {"train": [], "heldout": []}
        for row in rows:
            side = "heldout" if is_heldout(row, config.heldout_share, config.seed) else "train"
            parts[side].append(row)
        for part, found in parts.items():
            (run.folder / kind).mkdir(exist_ok=True)
            _write(run.folder / kind / f"{part}.jsonl", found)
            metrics[f"num_{kind}_{part}"] = len(found)
    if not judgements:
        told = ", ".join(f"{count} {rule.replace('_', ' ')}" for rule, count in by_rule.items())
        raise UserError(f"{path}: nothing is left of {len(feedback)} pieces of feedback: {told}")
    return metrics


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic_open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

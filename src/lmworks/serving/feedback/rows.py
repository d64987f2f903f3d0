"""What is agreed on as data to train on: answers, pairs and votes, in the field's usual shapes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from lmworks.data.documents import stable_id, stable_share
from lmworks.serving.feedback.rules import folded
from lmworks.serving.feedback.verdicts import Judgement, prompt_key

_MAX_PAIRS = 4  # of one conversation: more tell little that is new


def answer_rows(judgements: Sequence[Judgement], *, liked: bool) -> Iterator[dict[str, Any]]:
    """Conversations to fine-tune on: corrections, and answers that were liked if `liked`."""
    for one in judgements:
        if one.liked and (one.corrected or liked):
            answer = {"role": "assistant", "content": one.answer}
            yield _row(one, one.answer, messages=[*map(dict, one.prompt), answer])


def pair_rows(judgements: Sequence[Judgement]) -> Iterator[dict[str, Any]]:
    """Pairs for DPO and its kin: a correction over what it corrects, then liked over disliked."""
    by_prompt: dict[str, list[Judgement]] = defaultdict(list)
    for one in judgements:
        by_prompt[prompt_key(one.prompt)].append(one)
    for group in by_prompt.values():
        found = [
            (good, bad.answer)
            for good in group
            for bad in group
            if good.liked
            and (not bad.liked or folded(bad.answer) in good.better_than)
            and folded(good.answer) != folded(bad.answer)
            and folded(good.answer) not in bad.better_than
        ]
        found.sort(key=lambda pair: folded(pair[1]) not in pair[0].better_than)  # stable
        for good, bad in found[:_MAX_PAIRS]:
            yield _row(
                good,
                good.answer + "\0" + bad,
                prompt=list(map(dict, good.prompt)),
                chosen=[{"role": "assistant", "content": good.answer}],
                rejected=[{"role": "assistant", "content": bad}],
            )


def vote_rows(judgements: Sequence[Judgement]) -> Iterator[dict[str, Any]]:
    """Answers that are liked or not, for KTO."""
    for one in judgements:
        completion = [{"role": "assistant", "content": one.answer}]
        prompt = list(map(dict, one.prompt))
        yield _row(one, one.answer, prompt=prompt, completion=completion, label=one.liked)


def _row(one: Judgement, answer: str, **fields: Any) -> dict[str, Any]:
    # Rows of one question stay together, in a split and in an interval.
    group = stable_id(one.question)
    return {"id": stable_id(prompt_key(one.prompt), answer), "document": group, **fields}


def is_heldout(row: dict[str, Any], share: float, seed: int) -> bool:
    """Whether a row is held out: a coin of its question, which lands the same for ever."""
    return stable_share("feedback", str(seed), row["document"]) < share

"""Opinions counted: what people together think of an answer, and where they contradict each other.

A thumb is an opinion on its answer. A correction is one for its text and one against the answer
that it corrects, unless the same person liked that one (then it is only the better of two). One
source counts once for an answer, with what it said last, and no source counts without end.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from lmworks.serving.feedback.rules import FeedbackLimits, folded, reason_to_drop
from lmworks.serving.feedback.values import Feedback

Key = tuple[str, str]  # the conversation before an answer, and the answer, folded


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Feedback that is not learnt from: which rule, on what evidence."""

    id: str
    source: str
    rule: str
    evidence: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """An answer that is agreed on.

    Attributes:
        better_than: folded answers that this one was written to replace.
    """

    id: str
    prompt: tuple[Mapping[str, str], ...]
    question: str
    answer: str
    liked: bool
    corrected: bool  # whether a person wrote it
    better_than: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Opinion:
    feedback: Feedback
    text: str
    sign: int
    instead_of: str = ""  # the answer, folded, that the text was written to replace

    @property
    def key(self) -> Key:
        return prompt_key(self.feedback.prompt), folded(self.text)


def prompt_key(prompt: Sequence[Mapping[str, str]]) -> str:
    """What tells one conversation from another, whatever their blanks."""
    return "\0".join(f"{m['role']}:{folded(m['content'])}" for m in prompt)


def judge(
    feedback: Iterable[Feedback], limits: FeedbackLimits
) -> tuple[list[Judgement], list[LeftOut]]:
    """What is agreed on, in the order in which it was first said, and what is left out."""
    left_out: list[LeftOut] = []
    sound = []
    for one in feedback:
        if reason := reason_to_drop(one, limits):
            left_out.append(_left(one, *reason))
        else:
            sound.append(one)
    opinions = _one_each(_opinions(_within_limit(sound, limits, left_out)), left_out)
    by_answer: dict[Key, list[_Opinion]] = defaultdict(list)
    for opinion in opinions:
        by_answer[opinion.key].append(opinion)
    found = []
    for (_, answer), said in by_answer.items():
        counts = Counter(opinion.sign for opinion in said)
        likes, dislikes = counts[1], counts[-1]
        if max(likes, dislikes) < limits.min_agreement * len(said):
            evidence = f"{likes} for it and {dislikes} against it: {answer[:60]!r}"
            left_out += [_left(o.feedback, "contradiction", evidence) for o in _per_id(said)]
            continue
        found.append(_judgement(said, liked=likes > dislikes))
    return found, left_out


def _within_limit(
    feedback: Iterable[Feedback], limits: FeedbackLimits, left_out: list[LeftOut]
) -> list[Feedback]:
    """The newest of each source, as many as one may have."""
    feedback = list(feedback)
    if not limits.max_per_source:
        return feedback
    counts: Counter[str] = Counter()
    kept = []
    for one in reversed(feedback):
        counts[one.source] += 1
        if counts[one.source] <= limits.max_per_source:
            kept.append(one)
        else:
            evidence = f"{one.source} has said more than {limits.max_per_source} things since"
            left_out.append(_left(one, "one_source", evidence))
    return kept[::-1]


def _opinions(feedback: Sequence[Feedback]) -> Iterable[_Opinion]:
    liked = {
        (one.source, prompt_key(one.prompt), folded(one.answer))
        for one in feedback
        if one.rating > 0
    }
    for one in feedback:
        if one.rating:
            yield _Opinion(one, one.answer, one.rating)
        if one.correction:
            old = folded(one.answer)
            yield _Opinion(one, one.correction, 1, old)
            if not one.rating and (one.source, prompt_key(one.prompt), old) not in liked:
                yield _Opinion(one, one.answer, -1)


def _one_each(opinions: Iterable[_Opinion], left_out: list[LeftOut]) -> list[_Opinion]:
    """The last opinion of each source on each answer; what only repeats one is left out."""
    last: dict[tuple[str, Key], _Opinion] = {}
    replaced: dict[str, Feedback] = {}
    for opinion in opinions:
        place = (opinion.feedback.source, opinion.key)
        before = last.get(place)
        if before is None:
            last[place] = opinion
        elif before.sign == opinion.sign:
            instead_of = before.instead_of or opinion.instead_of
            last[place] = dataclasses.replace(before, instead_of=instead_of)
            replaced[opinion.feedback.id] = opinion.feedback
        else:
            last[place] = opinion
            replaced[before.feedback.id] = before.feedback
    heard = {opinion.feedback.id for opinion in last.values()}
    for name, feedback in replaced.items():
        if name not in heard:
            said = f"{feedback.source} says something of this answer again"
            left_out.append(_left(feedback, "duplicate", said))
    return list(last.values())


def _per_id(opinions: Sequence[_Opinion]) -> list[_Opinion]:
    return list({opinion.feedback.id: opinion for opinion in opinions}.values())


def _judgement(said: Sequence[_Opinion], *, liked: bool) -> Judgement:
    first = next(o for o in said if (o.sign > 0) == liked)
    replaced = dict.fromkeys(o.instead_of for o in said if o.instead_of and o.sign > 0)
    return Judgement(
        id=first.feedback.id,
        prompt=first.feedback.prompt,
        question=folded(first.feedback.question),
        answer=first.text.strip(),
        liked=liked,
        corrected=any(o.text == o.feedback.correction for o in said if o.sign > 0),
        better_than=tuple(replaced) if liked else (),
    )


def _left(feedback: Feedback, rule: str, evidence: str) -> LeftOut:
    return LeftOut(id=feedback.id, source=feedback.source, rule=rule, evidence=evidence)

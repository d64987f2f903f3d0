"""Win rates: models answer the same prompts anew, and a judge says whose answer is the better one.

The judge is a reward model, or a rule that the user names. Neither is a person, so what a judge is
worth is measured beside it: how often it agrees with the pairs of the data themselves. Answers are
greedy, so that a rate is the models' and not the draw's, and a tie is half a win for each.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmworks.core.errors import UserError, unknown_name
from lmworks.evaluation.preference_figures import told
from lmworks.evaluation.statistics import ratio_interval

if TYPE_CHECKING:
    from lmworks.training.preferences.rows import Pair, Text

# (pair, answer) -> number, higher for a better answer.
Rule = Callable[["Pair", str], float]
RULES = ("shorter", "longer", "chosen", "regex:PATTERN", "not:PATTERN")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
    """Who says which answer is better.

    Attributes:
        name: what it is, for the report.
        score: (pairs, answers) -> (N,), higher for a better answer.
    """

    name: str
    score: Callable[[Sequence[Pair], Sequence[str]], np.ndarray]


def rule_judge(text: str) -> Judge:
    """A judge that goes by a rule.

    `shorter` and `longer` count words, `chosen` looks whether an answer is nearer to the chosen
    answer than to the rejected one (F1 of their words), `regex:PATTERN` and `not:PATTERN` whether
    the pattern is found in it.

    Raises: UserError for a rule or a pattern that is none.
    """
    rule = _rule(text)
    return Judge(
        name=f"the rule {text}",
        score=lambda pairs, answers: np.array([rule(p, a) for p, a in zip(pairs, answers)]),
    )


def _rule(text: str) -> Rule:
    kind, colon, pattern = text.partition(":")
    if colon and kind in ("regex", "not"):
        try:
            found = re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"rule {text!r}: {pattern!r} is no regular expression: {error}"
            ) from None
        sign = 1.0 if kind == "regex" else -1.0
        return lambda pair, answer: sign * bool(found.search(answer))
    if text in ("shorter", "longer"):
        sign = 1.0 if text == "longer" else -1.0
        return lambda pair, answer: sign * len(answer.split())
    if text == "chosen":
        return lambda pair, answer: (
            word_f1(answer, plain(pair.chosen)) - word_f1(answer, plain(pair.rejected))
        )
    raise unknown_name("rule", text, RULES)


def word_f1(answer: str, wanted: str) -> float:
    """How much two texts share, from 0 to 1: the F1 of their words, case and punctuation apart.

    Source: Rajpurkar et al. 2016 (SQuAD), arXiv 1606.05250, section 6.1.
    """
    mine, theirs = (Counter(re.findall(r"\w+", text.lower())) for text in (answer, wanted))
    shared = sum((mine & theirs).values())
    return 2 * shared / (mine.total() + theirs.total()) if shared else 0.0


def plain(text: Text) -> str:
    """What the assistant says of an answer that is a text or a list of messages."""
    if isinstance(text, str):
        return text
    return "\n".join(m["content"] for m in text if m["role"] == "assistant")


def reward_judge(place: Path, head: Callable[[Path], int]) -> Judge:
    """A judge that is a reward model.

    Args:
        head: which of its numbers counts.
    Raises: UserError for a model that gives no reward.
    """
    from lmworks.models.config import LMHeadConfig
    from lmworks.models.load import load_single_model
    from lmworks.tokenizers.load import load_tokenizer

    model, tokenizer = load_single_model(place), load_tokenizer(place)
    if isinstance(model.config.head, LMHeadConfig):
        raise UserError(
            f"{place} is a language model, which gives no reward: make a judge with `lmworks train "
            "reward`, or name a --rule"
        )
    number = head(place)

    def score(pairs: Sequence[Pair], answers: Sequence[str]) -> np.ndarray:
        return _rewards(model, tokenizer, number, pairs, answers)

    return Judge(name=f"the reward model {place.name}", score=score)


def _rewards(
    model: Any, tokenizer: Any, head: int, pairs: Sequence[Pair], answers: Sequence[str]
) -> np.ndarray:
    """(N,) numbers of whole texts, of which the end is cut where they do not fit."""
    import torch

    from lmworks.core.progress import track
    from lmworks.training.objectives.reward import reward_of
    from lmworks.training.preferences.batches import encode_answer
    from lmworks.training.preferences.reward_batches import padded
    from lmworks.training.preferences.rows import as_messages

    room = model.config.max_position_embeddings
    ids = []
    for pair, answer in zip(pairs, answers):
        said = answer if isinstance(pair.prompt, str) else as_messages(answer, "assistant")
        ids.append(encode_answer(tokenizer, pair.prompt, said, pair.where, "all").ids[:room])
    found = np.zeros(len(ids))
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    with torch.no_grad(), track("judging", total=len(ids)) as bar:
        for first in range(0, len(order), 8):
            rows = order[first : first + 8]
            texts = padded([ids[i] for i in rows], tokenizer.pad_token_id or 0)
            rewards = reward_of(model, texts.input_ids, texts.attention_mask)
            found[rows] = rewards[:, head].numpy()
            bar.advance(len(rows))
    return found


def written(place: Path, pairs: Sequence[Pair], max_tokens: int) -> list[str]:
    """What the model at `place` answers to the prompts, greedily; "" where it has no room."""
    from lmworks.core.progress import track
    from lmworks.inference.engine import Engine
    from lmworks.inference.local import LocalChat
    from lmworks.inference.many import answers_to
    from lmworks.models.load import load_language_model
    from lmworks.tokenizers.load import load_tokenizer

    chat = LocalChat(Engine(load_language_model(place), load_tokenizer(place)), place.name)
    prompts = [p.prompt if isinstance(p.prompt, str) else [*p.prompt] for p in pairs]
    found: list[str] = []
    try:
        with track(f"{place.name} answers", total=len(prompts)) as bar:
            for answer in answers_to(chat, prompts, temperature=0.0, max_tokens=max_tokens):
                found.append((answer or "").strip())
                bar.advance()
    finally:
        chat.close()
    return found


def wins(judge: Judge, pairs: Sequence[Pair], mine: Sequence[str], other: Sequence[str]) -> Any:
    """(N,) 1 where `mine` is better, 1/2 for a tie; an answer without text loses to one with."""
    better = np.sign(judge.score(pairs, mine) - judge.score(pairs, other))
    has, others_has = (np.array([bool(a) for a in answers]) for answers in (mine, other))
    better = np.where(has == others_has, better * has, np.where(has, 1.0, -1.0))
    # The same words are the same answer, whatever rounding makes of them.
    same = np.array([a == b for a, b in zip(mine, other)])
    return (np.where(same, 0.0, better) + 1) / 2


def win_rate(
    judge: Judge,
    pairs: Sequence[Pair],
    mine: Sequence[str],
    other: Sequence[str],
    *,
    seed: int,
) -> dict[str, Any]:
    """How often `mine` beats `other`; is_shown: the interval lies on one side of a half."""
    won = wins(judge, pairs, mine, other)
    interval = ratio_interval(won, np.ones(len(won)), [p.group for p in pairs], seed=seed)
    lengths = [np.array([len(a.split()) for a in answers]) for answers in (mine, other)]
    not_longer = lengths[0] <= lengths[1]
    return {
        "win_rate": told(interval),
        "is_shown": interval.known and (interval.low > 0.5 or interval.high < 0.5),
        "won": int((won == 1).sum()),
        "tied": int((won == 0.5).sum()),
        "lost": int((won == 0).sum()),
        "mean_words": [float(length.mean()) for length in lengths],
        "win_rate_where_it_is_not_longer": (
            float(won[not_longer].mean()) if not_longer.any() else None
        ),
    }


def agreement(judge: Judge, pairs: Sequence[Pair], *, seed: int) -> list[float | None]:
    """How often the judge prefers what the data prefers: what its word is worth here."""
    chosen, rejected = ([plain(getattr(p, n)) for p in pairs] for n in ("chosen", "rejected"))
    right = (np.sign(judge.score(pairs, chosen) - judge.score(pairs, rejected)) + 1) / 2
    groups = [p.group for p in pairs]
    return told(ratio_interval(right, np.ones(len(right)), groups, seed=seed))

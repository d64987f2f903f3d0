"""The seam: a rule says why feedback should not be learnt from, or nothing; and a line in a table.

Anybody who can reach a server can teach it through its thumbs, so what is kept is what survives
these rules, then the count of opinions (`verdicts`), and at last the gates that a trained model has
to pass. The rules find what has a form: text that is unsafe only by its meaning has none.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Callable

from lmworks.core.config import option
from lmworks.core.errors import UserError
from lmworks.core.tables import load_target
from lmworks.serving.feedback.values import Feedback
from lmworks.serving.gateway.redaction import found_kinds

FEEDBACK_RULES: dict[str, str] = {
    "too_short": "lmworks.serving.feedback.rules:too_short",
    "too_long": "lmworks.serving.feedback.rules:too_long",
    "unchanged": "lmworks.serving.feedback.rules:unchanged",
    "private": "lmworks.serving.feedback.rules:private",
    "control_tokens": "lmworks.serving.feedback.rules:control_tokens",
    "repeats_itself": "lmworks.serving.feedback.rules:repeats_itself",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeedbackLimits:
    """What feedback has to be like to be learnt from."""

    min_characters: int = option(1, help="letters and digits of an answer to learn, at least")
    max_characters: int = option(20_000, help="characters of a conversation, at most")
    private: bool = option(True, help="leave out what holds addresses, numbers of cards, keys")
    max_repeated: float = option(0.5, help="share of an answer that one group of words may be")
    max_per_source: int = option(50, help="opinions of one conversation or client; 0 sets none")
    min_agreement: float = option(0.7, help="share of the opinions on an answer that must agree")

    def __post_init__(self) -> None:
        if not 0.5 < self.min_agreement <= 1:
            raise UserError(f"min_agreement = {self.min_agreement}: a share over 0.5, up to 1")
        if not 0 < self.max_repeated <= 1:
            raise UserError(f"max_repeated = {self.max_repeated}: a share over 0, up to 1")


Rule = Callable[[Feedback, FeedbackLimits], str | None]  # the evidence, or None to keep


def reason_to_drop(feedback: Feedback, limits: FeedbackLimits) -> tuple[str, str] | None:
    """(rule, evidence) of the first rule that speaks against it."""
    for name, target in FEEDBACK_RULES.items():
        rule: Rule = load_target(target)
        if evidence := rule(feedback, limits):
            return name, evidence
    return None


def folded(text: str) -> str:
    """A text without what does not change its meaning: compositions, widths of blanks."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def too_short(feedback: Feedback, limits: FeedbackLimits) -> str | None:
    """What is to be learnt has next to no letters or digits."""
    learnt = feedback.correction or (feedback.answer if feedback.rating > 0 else "")
    count = sum(map(str.isalnum, learnt))
    if not learnt or count >= limits.min_characters:
        return None
    return f"{learnt.strip()[:40]!r} has {count} letters and digits, {limits.min_characters} asked"


def too_long(feedback: Feedback, limits: FeedbackLimits) -> str | None:
    """More than one would want to read, let alone train on."""
    count = sum(map(len, feedback.texts))
    return f"{count:,} characters" if count > limits.max_characters else None


def unchanged(feedback: Feedback, limits: FeedbackLimits) -> str | None:
    """A correction that corrects nothing."""
    if feedback.correction and folded(feedback.correction) == folded(feedback.answer):
        return "the correction says what the answer said"
    return None


def private(feedback: Feedback, limits: FeedbackLimits) -> str | None:
    """Addresses, numbers of cards and accounts, keys: a model would learn them by heart."""
    if not limits.private:
        return None
    kinds = sorted({kind for text in feedback.texts for kind in found_kinds(text)})
    return f"holds {', '.join(kinds)}" if kinds else None


_MARKS = re.compile(
    r"<\|[a-z0-9_]{2,40}\|>|\[/?INST\]|<<?/?SYS>>?|<(?:start|end)_of_turn>|</?s>", re.IGNORECASE
)


def control_tokens(feedback: Feedback, limits: FeedbackLimits) -> str | None:
    """Text that imitates the marks between the turns of a conversation."""
    found = next((m for text in feedback.texts if (m := _MARKS.search(text))), None)
    return f"{found[0]!r} stands in the text" if found else None


def repeats_itself(feedback: Feedback, limits: FeedbackLimits) -> str | None:
    """An answer to learn that says the same few words again and again."""
    learnt = feedback.correction or (feedback.answer if feedback.rating > 0 else "")
    words = learnt.split()
    if len(words) < _FEW_WORDS:
        return None
    counts: dict[tuple[str, ...], int] = {}
    for group in zip(words, words[1:], words[2:], strict=False):
        counts[group] = counts.get(group, 0) + 1
    most, count = max(counts.items(), key=lambda item: item[1])
    share = count * 3 / len(words)
    if share <= limits.max_repeated:
        return None
    return f"{' '.join(most)[:40]!r} comes {count} times in {len(words)} words"


_FEW_WORDS = 20

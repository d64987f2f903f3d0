"""Prompts with a needle in them: drawn out of a text, put together, read by a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lmworks.core.errors import UserError
from lmworks.data.needles import draw_needle, needle_words

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.tokenizers.tokenizer import PipelineTokenizer

# A needle goes where a line or sentence ends, if that is no further away than this many tokens.
_MOST_SHIFT = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One prompt without its needle, as token ids, and the parts that go in.

    Attributes:
        before: what stands before the text, such as a separator of documents.
        ends: positions of the text before which something may be put in, ascending.
    """

    before: list[int]
    text: np.ndarray
    ends: np.ndarray
    needle: list[int]
    question: list[int]
    answer: list[int]

    def prompt(self, depth: float | None) -> np.ndarray:
        """The ids up to the answer, with the needle at `depth` (0 to 1) of the text, or without."""
        if depth is None:
            return np.concatenate((self.before, self.text, self.question)).astype(np.int64)
        at = round(depth * len(self.text))
        if 0 < at < len(self.text) and len(self.ends):
            nearest = self.ends[np.abs(self.ends - at).argmin()]
            at = int(nearest) if abs(nearest - at) <= _MOST_SHIFT else at
        parts = (self.before, self.text[:at], self.needle, self.text[at:], self.question)
        return np.concatenate(parts).astype(np.int64)


class Haystack:
    """A text as tokens, and the words that keys and values are made of."""

    def __init__(self, text: str, tokenizer: PipelineTokenizer) -> None:
        from lmworks.training.tokens import document_separator

        self._tokenizer = tokenizer
        self._ids = np.asarray(tokenizer.encode(text), dtype=np.int64)
        self._words = needle_words([text])
        self._before = [document_separator(tokenizer)]
        closing = {int(i) for i in np.unique(self._ids) if _closes(tokenizer.decode([int(i)]))}
        self._closes = np.isin(self._ids, list(closing))

    def trial(self, length: int, *, needle: str, words: int, seed: tuple[int, ...]) -> Trial:
        """A prompt of `length` tokens with the needle in it; the same for the same seed.

        Raises: UserError if the text is too short for it, or the length for the needle.
        """
        random = np.random.default_rng(list(seed))
        encode = self._tokenizer.encode
        asked, value, rest = draw_needle(random, needle, self._words, words)
        question, answer = _split(encode("\n" + asked.rstrip()), encode("\n" + asked + value))
        planted = encode("\n" + asked + value + rest + "\n")
        room = length - len(planted) - len(question) - len(self._before)
        if room < 1:
            raise UserError(
                f"a prompt of {length} tokens has no room: needle and question alone are "
                f"{length - room}"
            )
        if room > len(self._ids):
            raise UserError(
                f"the text has {len(self._ids):,} tokens, too few for a prompt of {length:,}"
            )
        start = int(random.integers(len(self._ids) - room + 1))
        closes = self._closes[start : start + room]
        return Trial(
            before=self._before,
            text=self._ids[start : start + room],
            ends=np.flatnonzero(closes) + 1,
            needle=planted,
            question=question,
            answer=answer,
        )


def read_haystack(path: Path, tokenizer: PipelineTokenizer) -> Haystack:
    """A corpus folder's held-out documents, or the texts of a file, one after the other."""
    from lmworks.data.documents import read_documents
    from lmworks.tokenizers.train import read_texts

    if path.is_dir():
        texts = [document.text for document in read_documents(path / "heldout.jsonl")]
    else:
        texts = list(read_texts(path))
    return Haystack("\n\n".join(texts), tokenizer)


def _closes(text: str) -> bool:
    return text.endswith("\n") or text.rstrip().endswith((".", "!", "?", "\u3002"))


def _split(question: list[int], whole: list[int]) -> tuple[list[int], list[int]]:
    """The tokens that both begin with, and what then follows in `whole`.

    A tokenizer may cut the end of a question otherwise when an answer follows it.
    """
    shared = 0
    while shared < min(len(question), len(whole) - 1) and question[shared] == whole[shared]:
        shared += 1
    return whole[:shared], whole[shared:]


def score(model: Model, prompt: np.ndarray, answer: list[int]) -> tuple[float, bool]:
    """Mean log-probability of the answer's tokens, nats, and whether greedy decoding gives it.

    Greedy decoding gives the answer exactly where each of its tokens is the likeliest after the
    prompt and the answer's tokens before it, so that one forward tells.
    """
    import torch
    import torch.nn.functional as F

    ids = torch.from_numpy(np.concatenate((prompt, answer[:-1])).astype(np.int64))[None]
    device = next(model.parameters()).device
    with torch.inference_mode():
        hidden = model.hidden_states(ids.to(device))[0, -len(answer) :]
        logits = model.logits(hidden).float().cpu()
    targets = torch.tensor(answer)
    nats = -F.cross_entropy(logits, targets)
    return float(nats), bool((logits.argmax(-1) == targets).all())

"""Which earlier passages bear on a question: by the words they share, or by meaning.

By words is BM25, over words without those that carry no meaning: no model is needed, and names and
numbers are found exactly. By meaning is the cosine of vectors of a sentence encoder, which finds
what is said in other words; the ranks of both are joined, as each misses what the other finds.

Sources: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework", section 3;
Cormack et al. 2009, reciprocal rank fusion (SIGIR 09).
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lmworks.inference.memory import Passage, Recalled
from lmworks.inference.memory_passages import sentences

if TYPE_CHECKING:
    import numpy as np

_K1, _B = 1.2, 0.75
_RANK_OFFSET = 60  # of reciprocal rank fusion, as in the paper
LEAST_COSINE = 0.25
_MOST = 8
# Words that say how something is said, not what.
_EMPTY_WORDS = (
    "a about again all also am an and any are as at be been but by can could did do does earlier "
    "for from give had has have he her him his how i if in into is it its just know let like me my "
    "no not now of on one or our out please remember said say she should so some tell than that "
    "the their them then there these they this to told up us was we were what when where which "
    "who why will with would yes you your assistant user"
)
_EMPTY = frozenset(_EMPTY_WORDS.split())


class VectorCache(Protocol):
    """Keeps vectors between questions, by encoder and a text's key."""

    def get(self, encoder: str, keys: Sequence[str]) -> dict[str, np.ndarray]: ...

    def put(self, encoder: str, vectors: Mapping[str, np.ndarray]) -> None: ...


class SentenceEncoder(Protocol):
    """What makes vectors of length one, float32 (N, D): an `Embedder`, or one yet to be loaded."""

    name: str

    def encode(self, texts: Sequence[str]) -> np.ndarray: ...


class LazyEncoder:
    """The encoder that `reference` stands for; it is loaded with the first text."""

    def __init__(self, reference: str) -> None:
        self.name = reference
        self._lock = threading.Lock()
        self._embedder: Any = None

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """See `Embedder.encode`. Raises: UserError when the model can't be had."""
        with self._lock:
            if self._embedder is None:
                from lmworks.inference.embedding import load_embedder

                self._embedder = load_embedder(self.name)
        vectors: np.ndarray = self._embedder.encode(list(texts))
        return vectors


class RecallByWords:
    """See the module."""

    def best(self, question: str, passages: Sequence[Passage]) -> list[Recalled]:
        """The passages that share words with the question, best first."""
        texts = [Counter(stems(passage.text)) for passage in passages]
        wanted = {stem: word for word in words_of(question) for stem in [_stem(word)]}
        if not texts or not wanted:
            return []
        lengths = [sum(counts.values()) or 1 for counts in texts]
        mean = sum(lengths) / len(lengths)
        holding = {stem: sum(stem in counts for counts in texts) for stem in wanted}
        found = []
        for passage, counts, length in zip(passages, texts, lengths, strict=True):
            score, shared = 0.0, []
            for stem, word in wanted.items():
                if count := counts[stem]:
                    rarity = math.log(
                        1 + (len(texts) - holding[stem] + 0.5) / (holding[stem] + 0.5)
                    )
                    norm = _K1 * (1 - _B + _B * length / mean)
                    score += rarity * count * (_K1 + 1) / (count + norm)
                    shared.append(word)
            if shared:
                why = "shares " + ", ".join(shared[:6])
                found.append(Recalled(passage=passage, score=round(score, 3), why=why))
        return sorted(found, key=lambda item: -item.score)[:_MOST]


class RecallByMeaning:
    """See the module."""

    def __init__(self, encoder: SentenceEncoder, cache: VectorCache | None = None) -> None:
        self._encoder, self._cache = encoder, cache

    def best(self, question: str, passages: Sequence[Passage]) -> list[Recalled]:
        """The passages near the question or with words of it, best first."""
        if not passages or not question.strip():
            return []
        near = self._nearness(question, passages)
        by_meaning = [i for i in near.argsort()[::-1].tolist() if near[i] >= LEAST_COSINE]
        by_words = RecallByWords().best(question, passages)
        places = {id(passage): index for index, passage in enumerate(passages)}
        ranks: dict[int, float] = {}
        reasons: dict[int, str] = {}
        for rank, index in enumerate(by_meaning[:_MOST], 1):
            ranks[index] = ranks.get(index, 0.0) + 1 / (_RANK_OFFSET + rank)
        for rank, item in enumerate(by_words, 1):
            index = places[id(item.passage)]
            ranks[index] = ranks.get(index, 0.0) + 1 / (_RANK_OFFSET + rank)
            reasons[index] = item.why
        found = []
        for index in sorted(ranks, key=lambda index: -ranks[index])[:_MOST]:
            why = f"near in meaning ({near[index]:.2f})"
            if index in reasons:
                why += f", {reasons[index]}"
            found.append(Recalled(passage=passages[index], score=float(near[index]), why=why))
        return found

    def _nearness(self, question: str, passages: Sequence[Passage]) -> np.ndarray:
        """The cosine of the question and each passage (N,): of its nearest sentence, or the whole.

        A remark in passing is lost in the mean of what stands around it.
        """
        import numpy as np

        units = [[passage.text, *_parts(passage.text)] for passage in passages]
        texts = list(dict.fromkeys(text for own in units for text in own))
        cosines = self.vectors(texts) @ self._encoder.encode([question])[0]
        by_text = dict(zip(texts, cosines.tolist(), strict=True))
        return np.array([max(by_text[text] for text in own) for own in units], dtype=np.float32)

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, D), of length 1; those not known yet are computed and kept."""
        import numpy as np

        keys = [hashlib.sha256(text.encode()).hexdigest()[:32] for text in texts]
        known = self._cache.get(self._encoder.name, keys) if self._cache is not None else {}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            made = self._encoder.encode(list(missing.values()))
            new = dict(zip(missing, made, strict=True))
            known |= new
            if self._cache is not None:
                self._cache.put(self._encoder.name, new)
        return np.stack([known[key] for key in keys])


def _parts(text: str) -> list[str]:
    found = sentences(text)
    return [part for part in found if len(part.split()) >= 3] if len(found) > 1 else []


def stems(text: str) -> list[str]:
    """The words that carry meaning, without the commonest endings of English."""
    return [_stem(word) for word in words_of(text)]


def words_of(text: str) -> list[str]:
    """The words that carry meaning, without case. Scripts without blanks give pairs of letters."""
    found = []
    for word in re.findall(r"[^\W_]+", text.casefold()):
        if re.match(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]", word):
            found += [word[i : i + 2] for i in range(max(1, len(word) - 1))]
        elif word not in _EMPTY:
            found.append(word)
    return found


def _stem(word: str) -> str:
    for ending in ("ing", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and word.isascii():
            word = word[: -len(ending)] + ("y" if ending == "ies" else "")
            break
    return word[:-1] if len(word) > 3 and word.endswith("e") else word

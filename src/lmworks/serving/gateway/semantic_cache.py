"""Answers that are given again for a question that means the same.

Two requests are compared only if they differ in nothing but the text of the last user message: same
key, same model, same conversation before it, same settings. Then the cosine of the two messages'
vectors decides. Vectors of a small encoder hardly see numbers, names and a "not": what is written
differently in those is another question whatever the cosine says.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
from lmworks.serving.gateway.cache import digest

if TYPE_CHECKING:
    import numpy as np

    from lmworks.inference.embedding import Embedder

_MAX_SCOPES, _MAX_PER_SCOPE = 512, 1024
_MAX_CHARACTERS = 2000  # longer messages are tasks, not questions, and differ where nobody looks
_MAX_TOKENS = 256  # of a question that the encoder reads
_NEGATIONS = frozenset(
    ("no", "not", "never", "none", "nor", "without", "cannot", "nobody", "nothing", "neither")
)
Embed = Callable[[Sequence[str]], "np.ndarray"]


class SemanticCache:
    """Finds the digest of an answer that was given to a question like this one.

    Args:
        embed: texts in, unit vectors out, (N, D) float32; called in a thread, one at a time.
    """

    def __init__(self, embed: Embed, threshold: float, ttl_s: float) -> None:
        self._embed, self._threshold, self._ttl_s = embed, threshold, ttl_s
        self._scopes: OrderedDict[str, list[_Kept]] = OrderedDict()
        self._lock = asyncio.Lock()
        self.hits = self.misses = 0

    async def find(self, key_id: str, path: str, body: Mapping[str, Any]) -> Question | None:
        """The question as this cache sees it, with `found` set if it knows one like it.

        Returns: None for a request that has no such question.
        """
        text = last_question(body)
        if path != "/chat/completions" or text is None or len(text) > _MAX_CHARACTERS:
            return None
        scope = digest(key_id, path, _without_question(body))
        async with self._lock:
            vector = (await asyncio.to_thread(self._embed, [text]))[0]
        question = Question(scope, vector, marks(text))
        question.found = self._nearest(question)
        if question.found:
            self.hits += 1
        else:
            self.misses += 1
        return question

    def keep(self, question: Question, answer: str) -> None:
        """Remember that the answer under that digest is one to this question."""
        kept = self._scopes.setdefault(question.scope, [])
        self._scopes.move_to_end(question.scope)
        kept.append(_Kept(question, answer))
        del kept[:-_MAX_PER_SCOPE]
        if len(self._scopes) > _MAX_SCOPES:
            self._scopes.popitem(last=False)

    def _nearest(self, question: Question) -> str:
        fresh_s = time.monotonic() - self._ttl_s
        best, answer = self._threshold, ""
        for kept in self._scopes.get(question.scope, ()):
            if kept.time_s < fresh_s or kept.question.marks != question.marks:
                continue
            cosine = float(kept.question.vector @ question.vector)
            if cosine >= best:
                best, answer = cosine, kept.answer
        return answer


class Question:
    """A last user message: the requests it may be compared with, its vector, and its marks."""

    def __init__(self, scope: str, vector: np.ndarray, marks: tuple[str, ...]) -> None:
        self.scope, self.vector, self.marks = scope, vector, marks
        self.found = ""


class _Kept:
    def __init__(self, question: Question, answer: str) -> None:
        self.question, self.answer, self.time_s = question, answer, time.monotonic()


def last_question(body: Mapping[str, Any]) -> str | None:
    """The text of the last message, if it is the user's and is nothing but text."""
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, Mapping) or last.get("role") != "user":
        return None
    content = last.get("content")
    return content if isinstance(content, str) and content.strip() else None


def _without_question(body: Mapping[str, Any]) -> dict[str, Any]:
    messages = list(body["messages"])
    messages[-1] = {**messages[-1], "content": None}
    return {**body, "messages": messages}


def marks(text: str) -> tuple[str, ...]:
    """What must be the same word for word: numbers, names, what is quoted, and negations."""
    quoted = re.findall(r'"([^"]{1,200})"|`([^`]{1,200})`', text)
    words = re.findall(r"[^\W\d_]+(?:['’]t)?|\d+(?:[.,:/]\d+)*", text)
    found = [a or b for a, b in quoted]
    for at, word in enumerate(words):
        lower = word.lower().replace("’", "'")
        is_name = at > 0 and word[0].isupper() and word != "I"
        if word[0].isdigit() or lower in _NEGATIONS or lower.endswith("n't") or is_name:
            found.append("not" if lower.endswith("n't") else lower)
    return tuple(sorted(found))


def load_question_encoder(reference: str) -> Embedder:
    """An encoder of sentence-transformers' layout, for questions; its `encode` is an `Embed`.

    Raises: UserError for a reference that leads to no such encoder.
    """
    from lmworks.inference.embedding import load_embedder
    from lmworks.models.config import EmbeddingHeadConfig

    embedder = load_embedder(reference, normalize=True, max_length=_MAX_TOKENS)
    if not isinstance(embedder.model.config.head, EmbeddingHeadConfig):
        embedder.close()
        raise UserError(f"{reference} gives no vectors of texts: name an encoder such as minilm-l6")
    return embedder

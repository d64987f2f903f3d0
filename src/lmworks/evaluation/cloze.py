"""Which of several tokens stands at a place of a text: a question for the models of all objectives.

Every model is asked in the way it learned and may use all that it can. One that fills gaps sees
both sides; one that reads in order weighs how likely the whole text is with each token put in, so
that what follows counts as well; one that finds replaced tokens judges each where it stands.

Wrong tokens are drawn as often as tokens occur in the training text, so that a model can't go by
how rare they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lmworks.core.errors import UserError

if TYPE_CHECKING:
    from lmworks.data.documents import Document
    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.objectives.text import TokenFacts

_ROWS = 32  # texts that go through a model at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions:
    """Q questions about texts of T tokens.

    Attributes:
        ids: (Q, T) the texts as they are.
        places: (Q,) of the tokens that are asked for.
        choices: (Q, K) tokens to choose from; the first one is right.
        groups: (Q,) names of the documents' groups.
    """

    ids: np.ndarray
    places: np.ndarray
    choices: np.ndarray
    groups: np.ndarray


def draw_questions(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    facts: TokenFacts,
    frequencies: np.ndarray,
    *,
    length: int,
    count: int,
    num_choices: int,
    seed: int = 0,
) -> Questions:
    """Up to `count` questions, one for each stretch of `length` tokens of a document.

    Args:
        frequencies: (V,) how often each token occurs in the training text.
    Raises: UserError if no document is long enough.
    """
    random = np.random.default_rng(seed)
    texts, groups = [], []
    for document in documents:
        whole = tokenizer.encode(document.text)
        for start in range(0, len(whole) - length + 2, length - 1):
            texts.append([facts.separator, *whole[start : start + length - 1]])
            groups.append(document.group)
    if not texts:
        raise UserError(f"no held-out document has {length} tokens: lower --context-length")
    picked = np.sort(random.permutation(len(texts))[:count])
    ids = np.array(texts, dtype=np.int64)[picked]
    # Away from the ends, so that there is text on both sides.
    places = random.integers(length // 4, length - length // 8, len(ids))
    right = ids[np.arange(len(ids)), places]
    shares = np.where(facts.special[: len(frequencies)], 0, frequencies).astype(float)
    wrong = np.stack([_others(token, shares, num_choices - 1, random) for token in right])
    return Questions(
        ids=ids,
        places=places,
        choices=np.concatenate([right[:, None], wrong], axis=1),
        groups=np.array(groups, dtype=str)[picked],
    )


def _others(token: int, shares: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Tokens but this one, drawn by their shares, each once."""
    left = shares.copy()
    left[token] = 0
    return random.choice(len(left), count, replace=False, p=left / left.sum())


def answer(
    model: Any, objective: Any, architecture: str, facts: TokenFacts, questions: Questions
) -> np.ndarray:
    """(Q,) 1 where the model likes the right token best, 0 elsewhere."""
    from lmworks.training.objectives.masked import MaskedLM
    from lmworks.training.objectives.permutation import PermutationLM
    from lmworks.training.objectives.replaced_token import ReplacedToken
    from lmworks.training.objectives.span_corruption import SpanCorruption

    ways: list[tuple[type, Callable[..., torch.Tensor]]] = [
        (MaskedLM, _fill),
        (PermutationLM, _ask),
        (ReplacedToken, _judge),
        (SpanCorruption, _tell),
    ]
    score = next((way for kind, way in ways if isinstance(objective, kind)), _read)
    model.eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(questions.ids), _ROWS):
            here = slice(start, start + _ROWS)
            parts = (questions.ids[here], questions.places[here], questions.choices[here])
            scores = score(model, objective, facts, *parts)  # (q, K)
            found.append((scores.argmax(dim=1) == 0).numpy())
    return np.concatenate(found).astype(np.float64)


def _fill(
    model: Any, objective: Any, facts: TokenFacts, ids: np.ndarray, at: np.ndarray, of: np.ndarray
) -> torch.Tensor:
    """A mask at the place: how likely each choice is there."""
    masked = ids.copy()
    rows = np.arange(len(ids))
    masked[rows, at] = facts.mask_id
    logits = model(torch.from_numpy(masked))[rows, at]
    return _chosen(logits, of)


def _ask(
    model: Any, objective: Any, facts: TokenFacts, ids: np.ndarray, at: np.ndarray, of: np.ndarray
) -> torch.Tensor:
    """All other tokens are known, and one question stands at the place."""
    from lmworks.training.objectives.permutation import two_streams

    order = np.zeros(ids.shape, dtype=np.int64)
    order[np.arange(len(ids)), at] = 1
    batch = two_streams(ids, order, facts)
    return _chosen(model(batch.input_ids, last_only=True, **batch.inputs)[:, 0], of)


def _tell(
    model: Any, objective: Any, facts: TokenFacts, ids: np.ndarray, at: np.ndarray, of: np.ndarray
) -> torch.Tensor:
    """The place is taken out: how likely an answer begins with each choice."""
    from lmworks.training.objectives.prefix import prefix_visible

    masked = ids.copy()
    masked[np.arange(len(ids)), at] = facts.sentinels[0]
    sentinel = np.full((len(ids), 1), facts.sentinels[0])
    end = np.full((len(ids), 1), facts.separator)
    if model.config.encoder is not None:
        source = torch.from_numpy(np.concatenate([masked, end], axis=1))
        asked = torch.from_numpy(np.concatenate([end, sentinel], axis=1))
        return _chosen(model(asked, encoded=model.encode(source), last_only=True)[:, 0], of)
    row = np.concatenate([masked, sentinel], axis=1)
    inputs = {}
    if objective.both_ways:
        ends = np.full(len(ids), ids.shape[1])
        inputs["visible"] = torch.from_numpy(prefix_visible(ends, row.shape[1]))
    return _chosen(model(torch.from_numpy(row), last_only=True, **inputs)[:, 0], of)


def _judge(
    model: Any, objective: Any, facts: TokenFacts, ids: np.ndarray, at: np.ndarray, of: np.ndarray
) -> torch.Tensor:
    """Each choice put in: how much it looks like the text's own."""
    filled = _with_each(ids, at, of)
    scores = model.discriminator(filled).unflatten(0, of.shape)  # (q, K, T)
    return -scores[torch.arange(len(ids)), :, torch.from_numpy(at)]


def _read(
    model: Any, objective: Any, facts: TokenFacts, ids: np.ndarray, at: np.ndarray, of: np.ndarray
) -> torch.Tensor:
    """Each choice put in: how likely the whole text is."""
    filled = _with_each(ids, at, of)
    logprobs = model(filled[:, :-1]).log_softmax(-1)
    said = logprobs.gather(-1, filled[:, 1:, None])[..., 0].sum(-1)
    return said.unflatten(0, of.shape)


def _with_each(ids: np.ndarray, at: np.ndarray, of: np.ndarray) -> torch.Tensor:
    """(q K, T): the texts with each of their choices at the place."""
    filled = np.repeat(ids[:, None], of.shape[1], axis=1)
    filled[np.arange(len(ids)), :, at] = of
    return torch.from_numpy(filled).flatten(0, 1)


def _chosen(logits: torch.Tensor, of: np.ndarray) -> torch.Tensor:
    return logits.gather(1, torch.from_numpy(of))

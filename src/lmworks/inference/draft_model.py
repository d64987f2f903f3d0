"""Guess with a model: a smaller one of the same vocabulary, or the first layers of the model.

The draft reads along in a cache of its own, in which guesses that were not kept are taken back. It
guesses for all requests of a step together. Where a request has a temperature and no seed, guesses
are drawn from the draft under the request's own filters and come with their probabilities;
otherwise they are the draft's likeliest. A grammar masks the draft as it masks the model.

An early exit is the model with fewer layers: the same embedding, norm and head. Without training
for it, its guesses are seldom good; acceptance is measured, and speculation ends where it is low.

Sources: Leviathan et al. 2023, arXiv 2211.17192; self-speculation: Zhang et al. 2023, arXiv
2309.08168, and Elhoushi et al. 2024, arXiv 2404.16710 (exit by the first layers).
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmworks.core.errors import UserError
from lmworks.inference.speculative import Guess

if TYPE_CHECKING:
    from lmworks.inference.engine import Engine
    from lmworks.inference.scheduler import Request
    from lmworks.models.model import Model

_CHUNK = 128  # tokens of a prompt that are read at once
_TOGETHER = 8  # tokens behind, up to which rows are read in one batch


class DraftModel:
    """The source `draft`.

    Args:
        model: the draft.
        vocab_size: its ids below that stand for the same tokens as the model's.
        target_size: ids that the model's sampler knows.
        num_slots: requests at the same time.
        max_positions: of the cache; requests that outgrow it are no longer guessed for.
        eos_token_ids: after which nothing is guessed.
    """

    instant = False
    guess_s = 0.0

    def __init__(
        self,
        model: Any,
        *,
        vocab_size: int,
        target_size: int,
        num_slots: int,
        max_positions: int,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        from lmworks.models.cache import KVCache

        self.model, self.vocab_size, self.target_size = model, vocab_size, target_size
        self.eos_token_ids = eos_token_ids
        self.cache = KVCache(model.config, num_slots, max_positions)
        if not self.cache.can_truncate:
            raise UserError("the draft keeps states that can't be taken back: choose another model")
        self._free = list(range(num_slots))
        self._states: dict[Request, _State] = {}

    @property
    def num_bytes(self) -> int:
        """Weights and cache."""
        from lmworks.models.size import held_bytes

        return self.cache.num_bytes + held_bytes(self.model)

    @classmethod
    def of(cls, engine: Engine, value: str) -> DraftModel:
        """A draft by reference. Raises: UserError where its tokens are not the model's."""
        from lmworks.core.references import resolve
        from lmworks.models.load import load_language_model
        from lmworks.tokenizers.load import load_tokenizer

        if not value:
            raise UserError("--speculate draft needs a smaller model: draft=REFERENCE")
        path = resolve(value).path
        if path is None:
            raise UserError(f"{value}: a draft's weights must be here, not behind an endpoint")
        model = load_language_model(path, packed=True)
        size = common_tokens(engine.tokenizer, load_tokenizer(path))
        return cls.beside(engine, model, min(size, model.config.vocab_size))

    @classmethod
    def beside(cls, engine: Engine, model: Any, vocab_size: int) -> DraftModel:
        """A draft for an engine's model."""
        return cls(
            model,
            vocab_size=min(vocab_size, engine.vocab_size),
            target_size=engine.vocab_size,
            num_slots=engine.max_batch,
            max_positions=min(engine.max_positions, model.config.max_position_embeddings),
            eos_token_ids=engine.eos_token_ids,
        )

    def guess(self, requests: Sequence[Request], most: Sequence[int]) -> list[Guess]:
        """See `Source`."""
        rows = [
            _Row(request, state, room)
            for request, room in zip(requests, most, strict=True)
            if (state := self._following(request, room)) is not None
        ]
        if rows:
            self._read_prompts(rows)
            began = time.perf_counter()
            logits = self._catch_up(rows)
            going = list(rows)
            while True:
                for row, scores in zip(going, logits, strict=True):
                    self._draw(row, scores)
                going = [row for row in going if len(row.ids) < row.most and not row.over]
                if not going:
                    break
                logits = list(self._forward(going, [[row.ids[-1]] for row in going])[:, -1])
            for row in rows:
                row.undo_grammar()
            self.guess_s = time.perf_counter() - began
        by_request = {row.request: row for row in rows}
        return [
            by_request[request].guess() if request in by_request else Guess()
            for request in requests
        ]

    def _following(self, request: Request, room: int) -> _State | None:
        """The request's state, if the draft knows all of its tokens and has room for more."""
        state = self._states.setdefault(request, _State())
        if state.knows_all:
            new = request.token_ids[state.seen :]
            state.knows_all = max(new, default=0) < self.vocab_size
            state.seen = len(request.token_ids)
        fits = len(request.token_ids) + room <= self.cache.max_positions
        if room < 1 or not fits or not state.knows_all:
            return None
        if state.slot < 0:
            state.slot = self._free.pop()
        return state

    def _read_prompts(self, rows: list[_Row]) -> None:
        """Take back what was guessed wrong, and read what is far behind, one row at a time."""
        for row in rows:
            held, ids = row.state.ids, row.request.token_ids
            same = min(row.state.sure, len(held))
            while same < min(len(held), len(ids) - 1) and held[same] == ids[same]:
                same += 1
            same = min(same, len(ids) - 1)  # the last token is always read, for its logits
            row.state.sure = len(ids)
            del held[same:]
            self.cache.truncate(row.state.slot, same)
            while len(ids) - len(held) > _TOGETHER:
                chunk = ids[len(held) : min(len(held) + _CHUNK, len(ids) - 1)]
                self._forward([row], [chunk], last_only=True)

    def _catch_up(self, rows: list[_Row]) -> list[np.ndarray]:
        """Read the last tokens. (V,) float32 for each row: the logits behind its last one."""
        pending = [row.request.token_ids[len(row.state.ids) :] for row in rows]
        longest = max(map(len, pending))
        padded = [ids + ids[-1:] * (longest - len(ids)) for ids in pending]
        logits = self._forward(rows, padded)
        for row in rows:
            length = len(row.request.token_ids)
            del row.state.ids[length:]
            self.cache.truncate(row.state.slot, length)
        return [logits[i, len(ids) - 1] for i, ids in enumerate(pending)]

    def _forward(
        self, rows: Sequence[_Row], ids: Sequence[Sequence[int]], *, last_only: bool = False
    ) -> np.ndarray:
        """Logits (B, T, V) over the tokens that both know."""
        import torch

        view = self.cache.view([row.state.slot for row in rows])
        input_ids = torch.tensor(ids, dtype=torch.long, device=self.cache.device)
        logits = self.model(input_ids, cache=view, last_only=last_only)[..., : self.vocab_size]
        for row, read in zip(rows, ids, strict=True):
            row.state.ids.extend(read)
        found: np.ndarray = logits.float().cpu().numpy()
        return found

    def _draw(self, row: _Row, scores: np.ndarray) -> None:
        """The next guess of a row."""
        logits = np.full(self.target_size, -np.inf, dtype=np.float32)
        logits[: len(scores)] = scores
        mask = row.mask()
        if mask is not None and not mask[: len(scores)].any():
            row.over = True
            return
        sampler = row.request.sampler
        if sampler.draws_freely:
            shares = sampler.distribution(logits, mask)
            token_id = row.state.draw(shares)
            row.probabilities.append(shares)
        else:
            token_id = int(sampler.scores(logits, mask).argmax())
        row.take(token_id, over=token_id in self.eos_token_ids)

    def ended(self, request: Request) -> None:
        """See `Source`."""
        state = self._states.pop(request, None)
        if state is not None and state.slot >= 0:
            self.cache.free(state.slot)
            self._free.append(state.slot)


class EarlyExit(DraftModel):
    """The source `early-exit`."""

    @property
    def num_bytes(self) -> int:
        """The cache: weights are the model's."""
        return self.cache.num_bytes

    @classmethod
    def of(cls, engine: Engine, value: str) -> EarlyExit:
        """Raises: UserError for a number of layers that the model does not have."""
        if not hasattr(engine.model, "layers"):
            raise UserError("early-exit: an ensemble has no first layers: use lookup or draft=REF")
        num_layers = len(engine.model.config.layers)
        if not value.isdecimal() or not 1 <= int(value) < num_layers:
            raise UserError(f"early-exit={value}: a number of layers from 1 to {num_layers - 1}")
        model = first_layers(engine.model, int(value))
        return cls.beside(engine, model, engine.vocab_size)  # type: ignore[return-value]


def first_layers(model: Model, count: int) -> Model:
    """The model with its first `count` layers only; it shares all weights."""
    from torch import nn

    part = copy.copy(model)
    part.__dict__["_modules"] = dict(model._modules)
    part.config = dataclasses.replace(model.config, layers=model.config.layers[:count])
    part.layers = nn.ModuleList(model.layers[:count])
    return part


def common_tokens(tokenizer: Any, other: Any) -> int:
    """How many ids, from 0 on, stand for the same tokens in both.

    Raises: UserError where that is not all of the smaller vocabulary.
    """
    if (found := first_difference(tokenizer, other)) is not None:
        token_id, mine, theirs = found
        raise UserError(
            f"the draft has another vocabulary: id {token_id} is {theirs!r} there and {mine!r} "
            "in the model"
        )
    return min(tokenizer.vocab_size, other.vocab_size)


def first_difference(tokenizer: Any, other: Any) -> tuple[int, str, str] | None:
    """The first id that both have and that stands for two tokens, and these; None: none does."""
    for token_id in range(min(tokenizer.vocab_size, other.vocab_size)):
        mine, theirs = tokenizer.token_text(token_id), other.token_text(token_id)
        if mine != theirs:
            return token_id, mine, theirs
    return None


class _State:
    """What the draft holds of one request.

    Attributes:
        ids: what its slot of the cache has read.
        sure: so many of them are the request's for certain.
        seen: tokens of the request that were looked at; `knows_all` if the draft has them all.
    """

    def __init__(self) -> None:
        self.slot = -1
        self.ids: list[int] = []
        self.sure = self.seen = 0
        self.knows_all = True
        self._generator = np.random.default_rng()

    def draw(self, shares: np.ndarray) -> int:
        cumulative = np.cumsum(shares)
        target = self._generator.random() * cumulative[-1]
        return int(np.searchsorted(cumulative, target, side="right"))


class _Row:
    """A request while it is guessed for."""

    def __init__(self, request: Request, state: _State, most: int) -> None:
        self.request, self.state, self.most = request, state, most
        self.ids: list[int] = []
        self.probabilities: list[np.ndarray] = []
        self.over = False
        grammar = request.grammar
        self._grammar: Any = grammar if hasattr(grammar, "rollback") else None
        self._accepted = 0

    def mask(self) -> np.ndarray | None:
        return None if self._grammar is None else self._grammar.allowed_mask()

    def take(self, token_id: int, *, over: bool) -> None:
        self.ids.append(token_id)
        self.over = over
        if self._grammar is not None and not over:
            self._grammar.accept(token_id)
            self._accepted += 1
            self.over = self._grammar.finished

    def undo_grammar(self) -> None:
        if self._grammar is not None:
            self._grammar.rollback(self._accepted)

    def guess(self) -> Guess:
        return Guess(self.ids, probabilities=self.probabilities)

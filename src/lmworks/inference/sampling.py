"""Sampling settings, and how logits become a token.

The order is that of transformers: penalties and bias, a grammar's mask, temperature, top_k, top_p,
min_p, typical_p. Each request has its own generator and draws one number per token, and the draw
runs over the vocabulary in id order: neighbours in the batch can't touch it. (Their only trace is
the last bit of the logits, since a matrix product rounds differently with more rows.)

Filters keep every token as likely as the last one kept, so that ties never depend on sorting.
Work per token is a handful of passes over one row in NumPy; greedy is one pass.

Sources: top_p: Holtzman et al. 2020, arXiv 1904.09751; min_p: Nguyen et al. 2024, arXiv
2407.01082; typical_p: Meister et al. 2023, arXiv 2202.00666; repetition_penalty: Keskar et al.
2019, arXiv 1909.05858, section 4.1, over prompt and answer as in transformers; the other penalties
(over the answer) and bias: the OpenAI API reference.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lmworks.core.errors import UserError, nearest

MAX_LOGPROBS = 20
MAX_STOPS = 16


class InvalidParameter(UserError):
    """A request's setting is out of range or unknown; `param` is its name."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one request is sampled. Raises: InvalidParameter for a value out of range."""

    max_tokens: int | None = None  # None: as many as the context holds
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0  # 1: off
    top_k: int = 0  # 0: off
    min_p: float = 0.0  # 0: off
    typical_p: float = 1.0  # 1: off
    repetition_penalty: float = 1.0  # 1: off; above 1 makes what stands in the text less likely
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None  # None: a fresh one
    stop: str | tuple[str, ...] = ()
    logprobs: int | None = None  # how many likeliest tokens to name beside each; None: none at all

    def __post_init__(self) -> None:
        _integer("max_tokens", self.max_tokens, 1, None, optional=True)
        _number("temperature", self.temperature, 0.0, 100.0)
        _number("top_p", self.top_p, 0.0, 1.0, above=True)
        _integer("top_k", self.top_k, 0, None)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("typical_p", self.typical_p, 0.0, 1.0, above=True)
        _number("repetition_penalty", self.repetition_penalty, 0.0, 10.0, above=True)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _integer("seed", self.seed, -(2**63), 2**64 - 1, optional=True)
        _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS, optional=True)
        object.__setattr__(self, "stop", _stops(self.stop))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as the tuple that it becomes."""
        return (self.stop,) if isinstance(self.stop, str) else self.stop

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Sampling:
        """From keyword arguments. Raises: InvalidParameter naming an unknown one's nearest."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in known:
                close = nearest(name, known)
                hint = f"did you mean {close!r}? " if close else ""
                message = f"unknown sampling setting: {hint}known: {', '.join(known)}"
                raise InvalidParameter(name, message)
        return cls(**settings)


def _integer(name: str, value: Any, low: int, high: int | None, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        bound = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise InvalidParameter(name, f"must be a whole number {bound}, not {value!r}")


def _number(name: str, value: Any, low: float, high: float, *, above: bool = False) -> None:
    real = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not low <= value <= high or (above and value == low):
        bound = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
        raise InvalidParameter(name, f"must be a number {bound}, not {value!r}")


def _stops(value: Any) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else tuple(value or ())
    if len(stops) > MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise InvalidParameter("stop", f"must be at most {MAX_STOPS} texts, none of them empty")
    return stops


def _biases(value: Any) -> dict[int, float] | None:
    if not value:
        return None
    try:
        biases = {int(key): float(bias) for key, bias in dict(value).items()}
    except (TypeError, ValueError):
        raise InvalidParameter("logit_bias", "must map token ids to numbers") from None
    for bias in biases.values():
        _number("logit_bias", bias, -100.0, 100.0)
    return biases


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A sampled token; `logprob` and `top` (ids with log-probabilities) only if asked for."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """One request's sampler: its generator, and the tokens it has produced so far.

    Args:
        vocab_size: ids from there on are none.
        prompt_ids: what `repetition_penalty` counts as text beside the answer.
    """

    def __init__(self, sampling: Sampling, vocab_size: int, prompt_ids: Iterable[int] = ()) -> None:
        self._sampling = sampling
        seed = sampling.seed
        self._generator = np.random.default_rng(None if seed is None else seed % 2**64)
        self._counts: dict[int, int] = {}
        self._penalised = bool(sampling.frequency_penalty or sampling.presence_penalty)
        self._seen: np.ndarray | None = None  # (V,) bool, wanted by the repetition penalty only
        if sampling.repetition_penalty != 1:
            self._seen = np.zeros(vocab_size, dtype=bool)
            self._seen[[i for i in prompt_ids if i < vocab_size]] = True
        for token_id in sampling.logit_bias or ():
            if not 0 <= token_id < vocab_size:
                message = f"token id {token_id} is not in the vocabulary of {vocab_size}"
                raise InvalidParameter("logit_bias", message)

    def pick(self, logits: np.ndarray, mask: np.ndarray | None = None) -> Choice:
        """The next token from its logits (V,) float32, which stay as they are.

        Args:
            mask: (V,) bool, the tokens that a grammar allows.
        Raises: FloatingPointError if the logits are not numbers.
        """
        scores = self.scores(logits, mask)
        token_id = self.best(scores) if self._sampling.temperature == 0 else self._draw(scores)
        self.count(token_id)
        return self.choice(token_id, logits)

    @property
    def draws_freely(self) -> bool:
        """Whether single draws may fall otherwise, as long as their distribution is the same."""
        return self._sampling.temperature > 0 and self._sampling.seed is None

    def distribution(self, logits: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """(V,) float64, summing to 1: what `pick` draws from at a temperature above 0."""
        scores = self.scores(logits, mask)
        self.best(scores)
        weights = probabilities(scores, self._sampling).astype(np.float64)
        shares: np.ndarray = weights / weights.sum()
        return shares

    def pick_proposed(
        self,
        logits: np.ndarray,
        proposed: int,
        proposal: np.ndarray,
        mask: np.ndarray | None = None,
    ) -> Choice:
        """As `pick`, given a token that was drawn from `proposal`, which is kept where it can be.

        Over draws of both, the result has the distribution of `pick` whatever `proposal` is.

        Args:
            proposal: (V,), summing to 1; not 0 at `proposed`.
        Source: Leviathan et al. 2023, arXiv 2211.17192, algorithm 1.
        """
        wanted = self.distribution(logits, mask)
        token_id = proposed
        if self._generator.random() * proposal[proposed] >= wanted[proposed]:
            cumulative = np.cumsum(np.maximum(wanted - proposal, 0))
            target = self._generator.random() * cumulative[-1]
            token_id = int(np.searchsorted(cumulative, target, side="right"))
        self.count(token_id)
        return self.choice(token_id, logits)

    def choice(self, token_id: int, logits: np.ndarray) -> Choice:
        """A token that was decided upon, with the log-probabilities that were asked for."""
        if self._sampling.logprobs is None:
            return Choice(token_id=token_id)
        return _with_logprobs(token_id, logits, self._sampling.logprobs)

    def count(self, token_id: int) -> None:
        """Take note of a token for the penalties."""
        if self._penalised:
            self._counts[token_id] = self._counts.get(token_id, 0) + 1
        if self._seen is not None:
            self._seen[token_id] = True

    def best(self, scores: np.ndarray) -> int:
        """The greedy token, the first of several. Raises: FloatingPointError."""
        best = int(scores.argmax())  # NaN wins every argmax, so this one look finds it
        if not np.isfinite(scores[best]):
            raise FloatingPointError("the model's logits are not finite numbers")
        return best

    def scores(self, logits: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Logits after penalties, bias and mask: (V,) float32."""
        sampling = self._sampling
        unchanged = not sampling.logit_bias and not self._counts and self._seen is None
        if unchanged and mask is None:
            return logits
        scores = logits.copy()
        if self._seen is not None:
            seen = scores[self._seen]
            penalty = np.float32(sampling.repetition_penalty)
            scores[self._seen] = np.where(seen < 0, seen * penalty, seen / penalty)
        for token_id, bias in (sampling.logit_bias or {}).items():
            scores[token_id] += bias
        for token_id, count in self._counts.items():
            scores[token_id] -= count * sampling.frequency_penalty + sampling.presence_penalty
        if mask is not None:
            scores[~mask] = -np.inf
        return scores

    def _draw(self, scores: np.ndarray) -> int:
        self.best(scores)
        cumulative = np.cumsum(probabilities(scores, self._sampling), dtype=np.float64)
        target = self._generator.random() * cumulative[-1]
        return int(np.searchsorted(cumulative, target, side="right"))


def probabilities(scores: np.ndarray, sampling: Sampling) -> np.ndarray:
    """What a token is drawn from, up to a common factor: (V,) float32, 0 where filtered out."""
    weights: np.ndarray = np.exp((scores - scores.max()) / np.float32(sampling.temperature))
    if 0 < sampling.top_k < len(weights):
        kth = np.partition(weights, -sampling.top_k)[-sampling.top_k]
        weights[weights < kth] = 0
    if sampling.top_p < 1:
        descending = np.sort(weights)[::-1]
        cumulative = np.cumsum(descending, dtype=np.float64)
        last = int(np.searchsorted(cumulative, sampling.top_p * cumulative[-1]))
        weights[weights < descending[last]] = 0
    if sampling.min_p:
        weights[weights < np.float32(sampling.min_p)] = 0  # the largest weight is 1
    if sampling.typical_p < 1:
        _keep_typical(weights, sampling.typical_p)
    return weights


def _keep_typical(weights: np.ndarray, typical_p: float) -> None:
    """Keep those whose surprise is nearest to the entropy, until they have `typical_p` together."""
    kept = np.flatnonzero(weights)
    shares = weights[kept].astype(np.float64)
    shares /= shares.sum()
    surprise = -np.log(shares)
    distance = np.abs(surprise - (shares * surprise).sum())
    nearest_first = np.argsort(distance, kind="stable")
    last = int(np.searchsorted(np.cumsum(shares[nearest_first]), typical_p))
    limit = distance[nearest_first[min(last, len(kept) - 1)]]
    weights[kept[distance > limit]] = 0


def _with_logprobs(token_id: int, logits: np.ndarray, count: int) -> Choice:
    shifted = logits.astype(np.float64) - logits.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    count = min(count, len(logits))
    top = np.argpartition(logprobs, -count)[-count:] if count else np.empty(0, dtype=int)
    ranked = sorted(top.tolist(), key=lambda i: (-logprobs[i], i))
    return Choice(
        token_id=token_id,
        logprob=float(logprobs[token_id]),
        top=tuple((i, float(logprobs[i])) for i in ranked),
    )

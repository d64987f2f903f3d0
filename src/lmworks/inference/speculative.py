"""Speculative decoding: tokens that are guessed cheaply and checked by the model together.

A `Source` guesses what may follow: a smaller model (`draft_model`), the first layers of the model
itself, or what followed the same words earlier in the text (`prompt_lookup`). The engine reads the
guesses in one forward, and the request's own sampler decides at each place as if it stood there
alone. Nothing about the answer changes:

- A guess that comes without probabilities is kept where the sampler draws that very token. It uses
  the number from the generator that it would have used anyway, so greedy and seeded answers are,
  to the token, those without speculation; penalties, filters and grammars hold by themselves. A
  token x is kept with probability p(x), which is the rule below for a q that is certain of x.
- A guess that was drawn from q is kept with probability min(1, p(x)/q(x)), and otherwise another is
  drawn from max(p - q, 0) (`Sampler.pick_proposed`). More guesses are kept than by the first rule;
  the distribution is the model's, but the single tokens are others than without speculation. It is
  used for requests that have a temperature and no seed.

Whether that pays is a matter of the machine: reading several positions costs more than one, by how
much is measured in the steps that the engine takes. `Speculation` weighs that against the share of
guesses that a request kept lately, chooses how many to read, and none where plain steps give more
tokens per second; then it tries again now and then, at growing distances.

Sources: Leviathan, Kalman and Matias 2023, arXiv 2211.17192, algorithm 1 and section 3.4; Chen et
al. 2023, arXiv 2302.01318. Left out: trees of guesses, and heads trained to guess.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lmworks.core.errors import UserError, unknown_name

if TYPE_CHECKING:
    from lmworks.inference.engine import Engine
    from lmworks.inference.scheduler import Request

MOST_GUESSES = 8
SPECULATORS = {
    "lookup": "lmworks.inference.prompt_lookup:PromptLookup",
    "draft": "lmworks.inference.draft_model:DraftModel",
    "early-exit": "lmworks.inference.draft_model:EarlyExit",
}
_PRIOR = 0.6  # the share of guesses that is expected to be kept before anything is known
_FORGET = 0.9  # weight of what is known, with each further check
_PLAIN_FIRST = 3  # plain steps of a batch size that are timed before others are
_PLAIN_EVERY = 64
_FIRST_PAUSE, _LONGEST_PAUSE = 16, 512  # steps without guesses before the next try
_LOWEST_RATE = 0.2  # a request that keeps fewer of its guesses has none for a while
_MARGIN = 1.03  # less than this is not worth a changing latency


class Guess(tuple[int, ...]):
    """Token ids that may follow.

    Attributes:
        probabilities: of each place, (V,) float64: what it was drawn from. Empty: from nothing,
            the guess is certain.
        kind: guesses of one kind are kept about equally often.
    """

    probabilities: tuple[np.ndarray, ...]
    kind: int

    def __new__(
        cls, ids: Sequence[int] = (), *, probabilities: Sequence[np.ndarray] = (), kind: int = 0
    ) -> Guess:
        made = super().__new__(cls, ids)
        made.probabilities, made.kind = tuple(probabilities), kind
        return made

    def first(self, count: int) -> Guess:
        """The first `count` of them."""
        return Guess(self[:count], probabilities=self.probabilities[:count], kind=self.kind)


class Source(Protocol):
    """Guesses what may follow. All calls come from the engine's thread.

    Attributes:
        instant: guessing costs next to nothing, so that it is asked before it is decided.
        guess_s: what the last guess took, without reading a prompt for the first time.
    """

    instant: bool
    guess_s: float

    @property
    def num_bytes(self) -> int:
        """What it keeps in memory."""
        ...

    def guess(self, requests: Sequence[Request], most: Sequence[int]) -> list[Guess]:
        """For each request at most so many ids that may follow its `token_ids`."""
        ...

    def ended(self, request: Request) -> None:
        """The request holds no slot any more: what is kept for it can go."""
        ...


@dataclasses.dataclass
class _Record:
    """How one request's guesses went: by kind, weights of those kept and of those tried."""

    kept: dict[int, float] = dataclasses.field(default_factory=dict)
    tried: dict[int, float] = dataclasses.field(default_factory=dict)
    pause: int = _FIRST_PAUSE
    waited: int = 0
    kind: int = 0  # of the guess under way

    def rate(self, kind: int, prior: float) -> float:
        """The expected share of guesses that are kept, each after the one before it was."""
        tried = self.tried.get(kind, 0.0)
        return (self.kept.get(kind, 0.0) + 2 * prior) / (tried + 2)

    def note(self, kind: int, num_proposed: int, num_accepted: int) -> None:
        """Each kept one is a success; the first that was not is a failure, and hides the rest."""
        decided = num_accepted + (num_accepted < num_proposed)
        self.kept[kind] = _FORGET**decided * self.kept.get(kind, 0.0) + num_accepted
        self.tried[kind] = _FORGET**decided * self.tried.get(kind, 0.0) + decided


class StepTimes:
    """How long a forward takes, by requests and positions of each; learnt as the engine runs."""

    def __init__(self) -> None:
        self._seconds: dict[int, dict[int, float]] = {}
        self._counts: dict[tuple[int, int], int] = {}

    def note(self, num_requests: int, num_new: int, seconds: float) -> None:
        """One step. A single slow one (another process, a page fault) must not decide much."""
        times = self._seconds.setdefault(num_requests, {})
        known = times.get(num_new, seconds)
        times[num_new] = known + 0.2 * (min(seconds, 3 * known) - known)
        key = num_requests, num_new
        self._counts[key] = self._counts.get(key, 0) + 1

    def count(self, num_requests: int, num_new: int) -> int:
        """How often such a step was taken."""
        return self._counts.get((num_requests, num_new), 0)

    def predict(self, num_requests: int, num_new: int) -> float:
        """Seconds of such a step: by the nearest that are known, a bit too hopeful beyond them."""
        times = self._seconds.get(num_requests, {})
        if num_new in times:
            return times[num_new]
        below = max((n for n in times if n < num_new), default=None)
        above = min((n for n in times if n > num_new), default=None)
        if below is None:
            return times[above] if above is not None else 0.0
        if above is not None:
            share = (num_new - below) / (above - below)
            return times[below] + share * (times[above] - times[below])
        slope = 0.1 * times[min(times)]
        if len(times) > 1:
            before = max(n for n in times if n < below)
            slope = max(0.0, times[below] - times[before]) / (below - before)
        return times[below] + slope * (num_new - below)


class Speculation:
    """The engine's `Proposer`: a source, and the decision how much of it to use.

    Args:
        most: guesses in a step at most.
        always: guess in each step, whether it pays or not; for measuring.
    """

    def __init__(self, source: Source, *, most: int = MOST_GUESSES, always: bool = False) -> None:
        if most < 1:
            raise UserError(f"at least one token must be guessed at a time, not {most}")
        self.source, self.most, self.always = source, most, always
        self.times = StepTimes()
        self._guess_s: dict[int, float] = {}  # by number of guesses
        self._prior: dict[int, tuple[float, float]] = {}  # by kind: kept and tried, all requests
        self._records: dict[Request, _Record] = {}
        self._since_plain = 0
        self._pause = _FIRST_PAUSE  # of requests to come

    @property
    def num_bytes(self) -> int:
        """What the source keeps in memory."""
        return self.source.num_bytes

    def propose(self, requests: Sequence[Request], most: Sequence[int]) -> list[Guess]:
        """See `steps.Proposer`."""
        records = [self._record(request) for request in requests]
        rooms = self._rooms(records, most)
        none = [Guess() for _ in requests]
        if self._plain_is_due(len(requests)):
            return none
        guesses = self.source.guess(requests, rooms) if self.source.instant else None
        lengths = rooms if guesses is None else list(map(len, guesses))
        kinds = [given.kind for given in (records if guesses is None else guesses)]
        count = self._best_count(records, kinds, lengths)
        if count:
            self._pause = _FIRST_PAUSE
        else:
            count = self._try_again(records, most)
            rooms = [max(0, room) for room in most]
        if not count:
            return none
        if guesses is None:
            guesses = self.source.guess(requests, [min(count, room) for room in rooms])
            self._note_guessing(count, self.source.guess_s)
        for record, guess in zip(records, guesses, strict=True):
            record.kind = guess.kind
        self._since_plain += 1
        return [guess.first(count) for guess in guesses]

    def _record(self, request: Request) -> _Record:
        """A new request is tried as soon as others would be: where guesses were of no use lately,
        a short answer has none at all."""
        if request not in self._records:
            self._records[request] = _Record(pause=self._pause)
        return self._records[request]

    def _try_again(self, records: Sequence[_Record], most: Sequence[int]) -> int:
        """A small number of guesses where a request has waited long: things may have changed."""
        for record in records:
            record.waited += 1
        due = [record for record in records if record.waited >= record.pause]
        for record in due:
            record.waited, record.pause = 0, min(2 * record.pause, _LONGEST_PAUSE)
            self._pause = max(self._pause, record.pause)
        return min(2, self.most, max(most)) if due and max(most) > 0 else 0

    def _plain_is_due(self, num_requests: int) -> bool:
        """Whether the next step is to show what a step without guesses takes."""
        if self.always:
            return False
        due = self.times.count(num_requests, 1) < _PLAIN_FIRST or self._since_plain >= _PLAIN_EVERY
        if due:
            self._since_plain = 0
        return due

    def _best_count(
        self, records: Sequence[_Record], kinds: Sequence[int], lengths: Sequence[int]
    ) -> int:
        """How many guesses give most tokens per second; 0 where none do."""
        longest = max(lengths, default=0)
        if self.always or not longest:
            return longest
        rates = [
            record.rate(kind, self._prior_rate(kind))
            for record, kind in zip(records, kinds, strict=True)
        ]
        plain_s = self.times.predict(len(records), 1)
        best, best_speed = 0, _MARGIN * len(records) / plain_s if plain_s else 0.0
        for count in range(1, longest + 1):
            tokens = sum(
                1 + expected(rate, min(count, length))
                for rate, length in zip(rates, lengths, strict=True)
            )
            seconds = self.times.predict(len(records), 1 + count) + self._guessing_s(count)
            if seconds and tokens / seconds > best_speed:
                best, best_speed = count, tokens / seconds
        return best

    def _rooms(self, records: Sequence[_Record], most: Sequence[int]) -> list[int]:
        """How many guesses each request may have: none for a while where they are not kept."""
        rooms = [max(0, min(self.most, room)) for room in most]
        if self.always or self.source.instant:
            return rooms
        for index, record in enumerate(records):
            if record.rate(record.kind, self._prior_rate(record.kind)) < _LOWEST_RATE:
                rooms[index] = 0
        return rooms

    def _prior_rate(self, kind: int) -> float:
        kept, tried = self._prior.get(kind, (0.0, 0.0))
        return (kept + 4 * _PRIOR) / (tried + 4)

    def _guessing_s(self, count: int) -> float:
        known = self._guess_s
        if self.source.instant or not known:
            return 0.0
        if count in known:
            return known[count]
        nearest = min(known, key=lambda number: abs(number - count))
        return known[nearest] * count / nearest

    def _note_guessing(self, count: int, seconds: float) -> None:
        known = self._guess_s.get(count, seconds)
        self._guess_s[count] = known + 0.2 * (min(seconds, 3 * known) - known)

    def verified(self, request: Request, num_proposed: int, num_accepted: int) -> None:
        """See `steps.Proposer`."""
        record = self._records.get(request)
        if record is not None:
            record.note(record.kind, num_proposed, num_accepted)
            kept, tried = self._prior.get(record.kind, (0.0, 0.0))
            decided = num_accepted + (num_accepted < num_proposed)
            keep = 0.99**decided
            self._prior[record.kind] = keep * kept + num_accepted, keep * tried + decided

    def stepped(self, num_requests: int, num_new: int, seconds: float) -> None:
        """See `steps.Proposer`."""
        self.times.note(num_requests, num_new, seconds)

    def ended(self, request: Request) -> None:
        """See `steps.Proposer`."""
        self._records.pop(request, None)
        self.source.ended(request)


def expected(rate: float, count: int) -> float:
    """The guesses that are kept of `count`, each with probability `rate` after those before it."""
    return float(count) if rate >= 1 else rate * (1 - rate**count) / (1 - rate)


def speculation_for(engine: Engine, how: str, **options: Any) -> Speculation:
    """What `--speculate` names: `lookup`, `draft=REF` or `early-exit=K`.

    Args:
        options: of `Speculation`.
    Raises: UserError for an unknown way, or one that does not fit the engine's model.
    """
    from lmworks.core.tables import look_up

    name, _, value = how.partition("=")
    if name not in SPECULATORS:
        raise unknown_name("way to speculate", name, SPECULATORS)
    if not engine.can_speculate:
        raise UserError("this model keeps states that can't be taken back: it can't speculate")
    source = look_up(SPECULATORS, name, seam="speculator").of(engine, value)
    return Speculation(source, **options)

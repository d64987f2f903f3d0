"""The search for how to serve a model fastest: one question after the other, each a race.

First the format: the fastest one whose quality is within the bound. Quality takes far longer to
measure than speed, so formats race first, the winner's quality is measured, and only where it does
not do is the next one looked for. What the winner is then asked (threads, guessed tokens, prompts
read between steps, answers at the same time) changes no answer, and one question's answer hardly
touches another's: races one behind the other come to what a search over all combinations finds,
which `exhaustive` does, to be checked once. The type of cache is asked for last: it touches quality
again, so that the bound holds for format and cache together. The model as it is with a cache of f32
is what quality is measured against, and the only setting that is within any bound unasked.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.racing import race

AS_IT_IS = "as it is"  # the format of a model that was not rounded
_AT_ONCE = 6  # settings that an exhaustive search has beside the start
_NEAR = 1.3  # times the best time: still in after one look, which a busy machine can spoil


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServingSetting:
    """One way to serve a model.

    Attributes:
        format: name of the variant; see `optimize_serving`.
        threads: of the process.
        max_batch: answers at the same time. turn_tokens: of prompts read between two steps; 0
            takes the engine's.
        speculate: how tokens are guessed; "": not at all.
        cache_type: how keys and values are held.
    """

    format: str
    threads: int
    max_batch: int
    turn_tokens: int = 0
    speculate: str = ""
    cache_type: str = "f32"

    def words(self) -> str:
        """`Q4_0, 2 threads, 4 answers at the same time, guesses by lookup`."""
        words = [self.format, f"{self.threads} thread" + "s" * (self.threads > 1)]
        words += [f"{self.max_batch} answers at the same time"] * (self.max_batch > 1)
        words += [f"{self.turn_tokens} prompt tokens between steps"] * bool(self.turn_tokens)
        words += [f"guesses by {self.speculate}"] * bool(self.speculate)
        words += [f"a cache of {self.cache_type}"] * (self.cache_type != "f32")
        return ", ".join(words)

    def engine(self) -> dict[str, Any]:
        """Settings of `inference.engine.Engine`, and of a model in a models.yaml."""
        turn = {"turn_tokens": self.turn_tokens} if self.turn_tokens else {}
        cache = {"cache_type": self.cache_type} if self.cache_type != "f32" else {}
        return {"max_batch": self.max_batch, **turn, **cache}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """What may be chosen; the first of each is where the search starts."""

    format: tuple[str, ...]
    threads: tuple[int, ...]
    max_batch: tuple[int, ...]
    turn_tokens: tuple[int, ...]
    speculate: tuple[str, ...]
    cache_type: tuple[str, ...] = ("f32",)

    def start(self) -> ServingSetting:
        """The first of each."""
        return next(self.all())

    def all(self) -> Iterator[ServingSetting]:
        """All combinations."""
        names = [field.name for field in dataclasses.fields(self)]
        for values in itertools.product(*(getattr(self, name) for name in names)):
            yield ServingSetting(**dict(zip(names, values, strict=True)))


@dataclasses.dataclass(kw_only=True)
class ServingSearch:
    """Looks for the setting with the least time.

    Args:
        time: seconds of one round of the workload.
        good_enough: whether the quality of a format with a type of cache is within the bound; asked
            as rarely as possible.
        leave: called with settings that are out, whose process can go.
    Attributes:
        times: all that was timed, in order.
        asked: formats and types of cache whose quality was asked for, and the answer.
    """

    time: Callable[[ServingSetting], float]
    good_enough: Callable[[str, str], bool]
    leave: Callable[[ServingSetting], None] = lambda setting: None
    rounds: int = 3
    times: dict[ServingSetting, list[float]] = dataclasses.field(default_factory=dict)
    asked: dict[tuple[str, str], bool] = dataclasses.field(default_factory=dict)

    def run(self, space: Space) -> ServingSetting:
        """The fastest within the bound. Raises: UserError where no format is."""
        best = self._format(space)
        for name in ("threads", "speculate", "turn_tokens", "max_batch"):
            others = [value for value in getattr(space, name) if value != getattr(best, name)]
            if others:
                settings = [dataclasses.replace(best, **{name: value}) for value in others]
                best = self._race([best, *settings])
        return self._cache(best, space)

    def exhaustive(self, space: Space) -> ServingSetting:
        """The fastest of all combinations; bad formats are left out. Raises: UserError as `run`.

        They come in groups, each with the start, so that only a few processes are there at once:
        what counts of each is its time over the start's in the same round.
        """
        settings = [setting for setting in space.all() if self._good(setting)]
        if not settings:
            raise _nothing_left(space)
        start, *others = settings
        ratios: dict[ServingSetting, list[float]] = {start: [1.0]}
        for first in range(0, len(others), _AT_ONCE):
            group = others[first : first + _AT_ONCE]
            for _ in range(self.rounds):
                base = self._timed(start)
                for setting in group:
                    ratios.setdefault(setting, []).append(self._timed(setting) / base)
            for setting in group:
                self.leave(setting)
        return min(ratios, key=lambda s: statistics.median(ratios[s]))

    def _format(self, space: Space) -> ServingSetting:
        left = [dataclasses.replace(space.start(), format=name) for name in space.format]
        while left:
            best = self._race(left) if len(left) > 1 else left[0]
            if self._good(best):
                return best
            left.remove(best)
        raise _nothing_left(space)

    def _cache(self, best: ServingSetting, space: Space) -> ServingSetting:
        """A type of cache touches quality, so that a faster one has to be good enough as well."""
        left = [dataclasses.replace(best, cache_type=name) for name in space.cache_type]
        while len(left) > 1:
            found = self._race(left)
            if found == best or self._good(found):
                return found
            left.remove(found)
        return best

    def _good(self, setting: ServingSetting) -> bool:
        key = setting.format, setting.cache_type
        if key == (AS_IT_IS, "f32"):
            return True
        if key not in self.asked:
            self.asked[key] = self.good_enough(*key)
        return self.asked[key]

    def _race(self, settings: Sequence[ServingSetting]) -> ServingSetting:
        """The first of them stays unless another one is ahead by the margin of a race."""
        return race(
            settings,
            self._timed,
            rounds=self.rounds,
            near=_NEAR,
            champion=settings[0],
            leave=self.leave,
        )

    def _timed(self, setting: ServingSetting) -> float:
        seconds = self.time(setting)
        self.times.setdefault(setting, []).append(seconds)
        return seconds


def _nothing_left(space: Space) -> UserError:
    return UserError(
        f"none of {', '.join(space.format)} is within the bounds on quality: widen them, allow a "
        "larger file, or name other types with --type"
    )

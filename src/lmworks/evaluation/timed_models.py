"""Models that take turns at the same prompts, each in a process of its own.

Speeds of one machine can be compared only where its moods fall on all: models answer in turns, in
rounds, and what is judged are ratios within a round. All processes are there at the same time and
idle when it is not their turn; where they would not fit into memory together, they come in groups,
each with the first model (the baseline), whose rounds tie the groups to each other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.progress import track

_PROCESS_BYTES = 350_000_000  # of a Python with torch and kernels, beside the weights
_SHARE_OF_MEMORY = 0.6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What a process is to run.

    Attributes:
        model: reference or path.
        prompts: token ids; all are answered at the same time.
        answer_tokens: of each answer, whatever the model would say.
        threads: 0 takes all usable cores.
        packed: compute with quantised matrices as they are.
        speculate: as in `serving.model_specs.ModelSpec`.
        engine: further settings of `inference.engine.Engine`, by name.
    """

    model: str
    prompts: tuple[tuple[int, ...], ...]
    answer_tokens: int = 32
    threads: int = 0
    packed: bool = True
    speculate: str = ""
    engine: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timed:
    """How a job ran; round i of one job and round i of another were neighbours.

    Attributes:
        prompt_s, decode_s: (rounds,) until all prompts had a first token, and from then on.
        weight_bytes: of the weights as they lie in memory. peak_memory_bytes: of the process.
        not_fused: why steps run operation by operation; "": they don't.
        against: decode and prompt speed as a multiple of the baseline's, round by round, (rounds,)
            each; ones for the baseline itself.
    """

    job: Job
    prompt_s: tuple[float, ...]
    decode_s: tuple[float, ...]
    weight_bytes: int
    peak_memory_bytes: int
    not_fused: str
    against: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())

    @property
    def prompt_tokens_per_s(self) -> float:
        """Tokens of all prompts over the median of the rounds."""
        return sum(map(len, self.job.prompts)) / statistics.median(self.prompt_s)

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens of all answers but the first, over the median of the rounds."""
        count = len(self.job.prompts) * (self.job.answer_tokens - 1)
        return count / statistics.median(self.decode_s)

    @property
    def seconds(self) -> tuple[float, ...]:
        """(rounds,) from the prompts to the end of the last answer."""
        return tuple(a + b for a, b in zip(self.prompt_s, self.decode_s, strict=True))


class TimedModel:
    """A process with one model; `round()` has it answer once. Close it, or use `with`.

    Raises: UserError for what the model's loading raises there, or a process that ended.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lmworks.evaluation.timed_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=dict(os.environ),
        )
        self.peak_memory_bytes = 0
        self.loaded: dict[str, Any] = {}
        self._say(json.dumps(dataclasses.asdict(job)))

    def wait(self) -> None:
        """Until the model is loaded."""
        self.loaded = self.loaded or self._hear()

    def round(self) -> tuple[float, float]:
        """Seconds until all prompts had a first token, and from then to the end."""
        self.wait()
        self._say("round")
        found = self._hear()
        self.peak_memory_bytes = max(self.peak_memory_bytes, found["peak_memory_bytes"])
        return found["prompt_s"], found["decode_s"]

    def close(self) -> None:
        """End the process. Twice is fine."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def __enter__(self) -> TimedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _say(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # what went wrong is heard
            self._process.stdin.write(line + "\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]

    def _hear(self) -> dict[str, Any]:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
            why = said or "killed, most likely for want of memory"
            raise UserError(
                f"{self.job.model}: the process that was to run it ended with {code}: {why}"
            )
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise UserError(f"{self.job.model}: {found['error']}")
        return found


def time_in_turns(jobs: Sequence[Job], *, rounds: int) -> list[Timed]:
    """All jobs, `rounds` times each, in turns; the first one is the baseline of the others."""
    if not jobs or rounds < 1:
        raise ValueError(f"{len(jobs)} jobs in {rounds} rounds: nothing to time")
    found: dict[int, Timed] = {}
    groups = _groups(jobs)
    with track("timing", total=sum(map(len, groups)) * rounds) as bar:
        for group in groups:
            timed = _time_group([jobs[index] for index in group], rounds, bar)
            for index, each in zip(group, timed, strict=True):
                found.setdefault(index, each)
    return [found[index] for index in range(len(jobs))]


def _time_group(jobs: Sequence[Job], rounds: int, bar: Any) -> list[Timed]:
    with contextlib.ExitStack() as stack:
        models = []
        for job in jobs:
            models.append(stack.enter_context(TimedModel(job)))
            models[-1].wait()  # one at a time: loading takes more than what is kept
        seconds: list[list[tuple[float, float]]] = [[] for _ in models]
        for number in range(rounds):
            for place in _order(len(models), number):
                seconds[place].append(models[place].round())
                bar.advance(1)
        prompts, decodes = zip(*(zip(*each, strict=True) for each in seconds), strict=True)
        return [
            Timed(
                job=model.job,
                prompt_s=prompt,
                decode_s=decode,
                weight_bytes=model.loaded["weight_bytes"],
                peak_memory_bytes=model.peak_memory_bytes,
                not_fused=model.loaded["not_fused"],
                against=(_ratios(decodes[0], decode), _ratios(prompts[0], prompt)),
            )
            for model, prompt, decode in zip(models, prompts, decodes, strict=True)
        ]


def _order(count: int, number: int) -> Iterator[int]:
    """Nobody is always the first, and nobody always follows the same neighbour."""
    places = list(range(count))
    turned = places[number % count :] + places[: number % count]
    return iter(turned if number % 2 == 0 else turned[::-1])


def _ratios(base: Sequence[float], own: Sequence[float]) -> tuple[float, ...]:
    return tuple(a / b for a, b in zip(base, own, strict=True))


def _groups(jobs: Sequence[Job]) -> list[list[int]]:
    """Jobs whose processes fit into memory together, the first one in each group."""
    from lmworks.core.machine import memory_bytes
    from lmworks.models.size import model_size

    room = _SHARE_OF_MEMORY * (memory_bytes() or 8e9)
    sizes = [model_size(job.model, packed=job.packed).weight_bytes + _PROCESS_BYTES for job in jobs]
    groups: list[list[int]] = [[0]]
    for index in range(1, len(jobs)):
        if sum(sizes[i] for i in [*groups[-1], index]) > room and len(groups[-1]) > 1:
            groups.append([0])
        groups[-1].append(index)
    return groups

"""Whether a bundle says what its model said: its own program replays the model's greedy text.

The program of the bundle runs as a process of its own, within the memory that it is to have, and is
given the source's prompts and answers. At each place of an answer it is asked for the next token
after the source's text up to there; the share of places where it names another one is the distance.
It answers greedily in one go until the first token that differs, then goes on behind the source's:
so a place is never asked about twice.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.progress import track


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """What came of it.

    Attributes:
        distance: share of the source's tokens in whose place the bundle says another.
        equal_before_difference: mean share of an answer before the first token that differs.
        tokens_per_s: as the program itself took the time, prompts included; median of answers.
        peak_bytes: the most memory that the process held; 0 where the system can't tell.
        num_tokens: that were compared.
    """

    distance: float
    equal_before_difference: float
    tokens_per_s: float
    peak_bytes: int
    num_tokens: int


class Runner:
    """The program `run.py --tokens` of a bundle.

    Args:
        memory_bytes: that it may take for itself (mapped files are counted in `peak_bytes`).
    """

    def __init__(self, folder: Path, memory_bytes: int) -> None:
        # A pipe that nobody reads would fill up. Closed in __exit__.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-c", _HELD, str(memory_bytes), str(folder / "run.py"), "--tokens"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.peak_bytes = 0

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, ids: Sequence[int], count: int) -> tuple[list[int], float]:
        """Up to `count` tokens after `ids`, and the seconds they took.

        Raises: UserError when the program has ended, with the last line that it wrote.
        """
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps({"ids": [*ids], "count": count}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        self.peak_bytes = max(self.peak_bytes, _peak_of(process.pid))
        if not line:
            process.wait()
            self._errors.seek(0)
            said = [row.strip() for row in self._errors if row.strip()]
            raise UserError(
                f"the bundle's program ended (status {process.returncode}; it last said: "
                f"{said[-1][:200] if said else 'nothing'}): give it more --memory, or a smaller "
                "--type or --context-length"
            )
        found: dict[str, Any] = json.loads(line)
        return [int(token) for token in found["ids"]], float(found["seconds"])


# Mapped weights are not counted by the limit, and can be dropped by the system at any time.
_HELD = """
import resource, runpy, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("run.py")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _peak_of(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def replay(runner: Runner, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> Replay:
    """Ask for each answer of the source; see the module.

    Args:
        prompts, answers: token ids; a prompt and its answer fit the bundle's context.
    """
    wrong, before, speeds = 0, [], []
    with track("replaying", total=sum(map(len, answers))) as bar:
        for prompt, answer in zip(prompts, answers, strict=True):
            at, first = 0, len(answer)
            while at < len(answer):
                said, seconds = runner.ask([*prompt, *answer[:at]], len(answer) - at)
                if at == 0 and len(said) > 1:
                    speeds.append(len(said) / seconds)
                same = 0
                while at + same < len(answer) and said[same : same + 1] == [answer[at + same]]:
                    same += 1
                if at + same < len(answer):
                    wrong += 1
                    first = min(first, at + same)
                bar.advance(min(same + 1, len(answer) - at))
                at += same + 1
            before.append(first / len(answer))
    total = sum(map(len, answers))
    return Replay(
        distance=wrong / total,
        equal_before_difference=sum(before) / len(before),
        tokens_per_s=sorted(speeds)[len(speeds) // 2] if speeds else 0.0,
        peak_bytes=runner.peak_bytes,
        num_tokens=total,
    )

"""The folder in which rounds follow each other, and the pointer to the model that is served.

    runs/assistant/
      rounds/0001/     a round each, as its stage left it
      rounds/0002/
      current          a link to the model of the last round that passed its gates

A round that fails stays, for whoever wants to know why; the next one goes on from the last that
passed. The link is put in its place by one rename, so that whoever loads `current` finds one model
or the other, whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.files import fsync_folder, writing
from lmworks.core.stages import MANIFEST, Artifact
from lmworks.evaluation.continual.round import MODEL, ContinualRoundConfig, continual_round

ROUNDS, CURRENT = "rounds", "current"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """A round that has ended."""

    number: int
    artifact: Artifact
    served: bool

    @property
    def promoted(self) -> bool:
        """Whether it passed its gates."""
        return bool(self.artifact.metrics.get("promoted"))


class ContinualState:
    """A state folder. Its rounds are artifacts; nothing else is kept beside the link."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def current(self) -> Path:
        """The link to the model that is served; it may not be there yet."""
        return self.folder / CURRENT

    def rounds(self) -> list[Round]:
        """The rounds that have ended, the oldest first."""
        return list(self._rounds())

    def _rounds(self) -> Iterator[Round]:
        served = self._served()
        for number in self._numbers():
            place = self._place(number)
            yield Round(number=number, artifact=Artifact.load(place), served=place.name == served)

    def learn(self, config: ContinualRoundConfig) -> Round:
        """One more round; its model is served from now on if it passed.

        A task that a round of the same settings has learnt already is not learnt again: that round
        is given. A round that was stopped goes on.

        Args:
            config: without `previous`, which is the round that is served; `model` and `general`
                count for a first round, and are left out of later ones.
        Raises: UserError as the stage.
        """
        served = self._served()
        if served:
            previous = self.folder / ROUNDS / served
            config = dataclasses.replace(config, previous=str(previous), model="", general="")
        elif not config.model:
            raise UserError(f"{self.folder} has no model yet: name the one to begin with (--model)")
        for done in reversed(self.rounds()):
            if self._is_same(done, config):
                return done
        number = max(self._numbers(), default=0) + 1
        artifact = continual_round(config, self._place(number))
        if artifact.metrics["promoted"]:
            self._point_to(number)
        return Round(number=number, artifact=artifact, served=self._served() == f"{number:04d}")

    def serve(self, number: int) -> None:
        """Serve the model of a round that passed, an earlier one for example.

        Raises: UserError for a round that there is not, or that did not pass.
        """
        found = {done.number: done for done in self._rounds()}
        if number not in found:
            known = ", ".join(map(str, found)) or "none"
            raise UserError(f"{self.folder} has no round {number}; there are: {known}")
        if not found[number].promoted:
            raise UserError(
                f"round {number} did not pass its gates: {self._place(number)}/gates.md"
            )
        self._point_to(number)

    def _is_same(self, done: Round, config: ContinualRoundConfig) -> bool:
        """Whether a round did what `config` asks for, from the model that is served or to it."""
        from lmworks.core.config import to_mapping

        if not (done.served or self._began_here(done)):
            return False
        asked, was = to_mapping(config), dict(done.artifact.manifest["config"])
        for name in ("task", "model", "previous", "general", "threads", "checkpoint_every_s"):
            asked.pop(name), was.pop(name, None)
        # A later round has its model and memory from the round before, see `_began_here`.
        names = ("task",) if config.previous else ("task", "model", "general")
        return asked == was and all(
            self._input_hash(done, name) == _hash_of(getattr(config, name)) for name in names
        )

    def _began_here(self, done: Round) -> bool:
        """Whether a round began with the model that is served now."""
        before = Path(str(done.artifact.manifest["config"].get("previous") or ""))
        return before.name == self._served()

    def _input_hash(self, done: Round, name: str) -> str:
        return str(done.artifact.manifest["inputs"].get(name, {}).get("sha256", ""))

    def _numbers(self) -> list[int]:
        place = self.folder / ROUNDS
        names = [p.name for p in place.iterdir()] if place.is_dir() else []
        return sorted(
            int(name) for name in names if name.isdecimal() and (place / name / MANIFEST).is_file()
        )

    def _place(self, number: int) -> Path:
        return self.folder / ROUNDS / f"{number:04d}"

    def _served(self) -> str:
        """The name of the round that is served; "" for none.

        Raises: UserError for a link that leads elsewhere.
        """
        if not os.path.lexists(self.current):
            return ""
        place = self.current.readlink() if self.current.is_symlink() else Path()
        if place.parts[:1] != (ROUNDS,) or len(place.parts) != 3:
            raise UserError(f"{self.current} was not made by `train continue`: move it away")
        return place.parts[1]

    def _point_to(self, number: int) -> None:
        target = Path(ROUNDS) / f"{number:04d}" / MODEL
        beside = self.folder / f".{CURRENT}-{secrets.token_hex(4)}"
        with writing(self.current):
            try:
                beside.symlink_to(target, target_is_directory=True)
                beside.replace(self.current)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    beside.unlink()
        fsync_folder(self.folder)


def _hash_of(reference: str) -> str:
    from lmworks.core.stages import content_hash

    return content_hash(reference) if reference else ""


def described(rounds: list[Round]) -> list[dict[str, Any]]:
    """What a person wants to know of each round."""
    return [
        {
            "round": done.number,
            "task": done.artifact.metrics["task"],
            "promoted": done.promoted,
            "served": done.served,
            "shut": done.artifact.metrics["shut"],
            "finished": done.artifact.manifest["finished"],
        }
        for done in rounds
    ]

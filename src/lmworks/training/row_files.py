"""Rows of a user's data set: read, checked, and parted into training and held-out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from lmworks.core import progress
from lmworks.core.errors import UserError
from lmworks.data.documents import stable_share
from lmworks.training.preferences.rows import BadRow, read_rows


class Grouped(Protocol):
    """What belongs to a group."""

    @property
    def group(self) -> str:
        """Rows of one group are never parted."""


R = TypeVar("R", bound=Grouped)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split(Generic[R]):
    """Rows to train on, rows to hold out, and how many could not be used."""

    train: list[R]
    heldout: list[R]
    num_bad: int


def read_split(
    place: Path,
    make: Callable[[str, Mapping[str, Any]], Sequence[R]],
    *,
    heldout: float,
    seed: int,
    skip_bad: bool,
) -> Split[R]:
    """Read a folder with train.jsonl and perhaps heldout.jsonl, or one file.

    Where there is no heldout.jsonl, whole groups are held out, by a coin that their name and the
    seed decide, so that a set that grows keeps what it held out.

    Args:
        make: (file and line, row) -> what is made of it; raises BadRow for what can't be used.
        heldout: share of the groups to hold out.
        skip_bad: leave such rows out and count them, instead of ending at the first.
    Raises: UserError for a missing file, a bad row, or nothing to train on.
    """
    if not 0 <= heldout < 1:
        raise UserError(f"heldout = {heldout}: a share of the rows, from 0 up to below 1")
    bad: list[BadRow] = []

    def rows(path: Path) -> list[R]:
        found: list[R] = []
        for where, row in read_rows(path):
            try:
                found += make(where, row)
            except BadRow as error:
                if not skip_bad:
                    raise BadRow(f"{error} (--skip-bad leaves such rows out)") from None
                bad.append(error)
        return found

    path = place / "train.jsonl" if place.is_dir() else place
    train, apart = rows(path), place / "heldout.jsonl"
    if place.is_dir() and apart.is_file():
        split = Split(train=train, heldout=rows(apart), num_bad=len(bad))
    else:
        out = {group for group in {row.group for row in train} if _coin(group, seed) < heldout}
        split = Split(
            train=[row for row in train if row.group not in out],
            heldout=[row for row in train if row.group in out],
            num_bad=len(bad),
        )
    if bad:
        progress.say(f"  {len(bad)} rows are left out, the first: {bad[0]}")
    if not split.train:
        raise UserError(f"{path} holds no row to train on")
    return split


def _coin(group: str, seed: int) -> float:
    return stable_share("heldout", str(seed), group)

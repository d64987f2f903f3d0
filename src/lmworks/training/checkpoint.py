"""Checkpoints of a running training: written atomically, two kept, a damaged one passed over."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from lmworks.core import progress
from lmworks.core.files import atomic_save

_KEEP = 2


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write `step-N.pt`; older ones go once the new one is safe.

    Raises: UserError when the disk is full; the former checkpoints stay.
    """
    atomic_save(folder / f"step-{step:08d}.pt", lambda path: torch.save(state, path))
    for old in _checkpoints(folder)[:-_KEEP]:
        old.unlink()


def load_checkpoint(folder: Path, *, up_to: int | None = None) -> tuple[int, dict[str, Any]] | None:
    """The newest checkpoint that can be read, as (step, state), or None.

    Args:
        up_to: pass over those of later steps.
    """
    for path in reversed(_checkpoints(folder)):
        if up_to is not None and _step(path) > up_to:
            continue
        try:
            # weights_only: a checkpoint is data, nothing in it is run.
            state = torch.load(path, weights_only=True)
        except Exception as error:
            progress.say(f"  {path} can't be read ({type(error).__name__}): trying an older one")
            continue
        return _step(path), state
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("step-*.pt") if _step(p) >= 0), key=_step)


def _step(path: Path) -> int:
    match = re.fullmatch(r"step-(\d+)\.pt", path.name)
    return int(match[1]) if match else -1

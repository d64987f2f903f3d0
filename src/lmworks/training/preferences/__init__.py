"""Which of two answers is better: rows from files, batches of them, and the reference's figures.

In: JSON lines in TRL's shapes. Out: batches for the objectives of `prefer` and `reward`. The names
below load when they are asked for, so that a command line need not load torch.
"""

from __future__ import annotations

from typing import Any

_EXPORTS = {
    "BadRow": "rows",
    "Judged": "rows",
    "Pair": "rows",
    "as_judged": "rows",
    "as_pair": "rows",
    "Fit": "batches",
    "JudgedAnswers": "batches",
    "Pairs": "batches",
    "RewardPairs": "reward_batches",
    "Referenced": "reference",
    "store_reference": "reference",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lmworks.core.tables import load_target

    return load_target(f"{__name__}.{_EXPORTS[name]}:{name}")

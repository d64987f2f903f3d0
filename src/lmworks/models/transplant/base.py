"""What a method is given, what it gives, and the table of all methods."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Protocol

from lmworks.core.errors import UserError
from lmworks.core.tables import look_up

if TYPE_CHECKING:
    import numpy as np
    import torch

METHODS = {
    "random": "lmworks.models.transplant.random_normal:random_normal",
    "mean": "lmworks.models.transplant.mean:mean",
    "subtokens": "lmworks.models.transplant.subtokens:subtokens",
    "focus": "lmworks.models.transplant.focus:focus",
    "tokenadapt": "lmworks.models.transplant.tokenadapt:tokenadapt",
    "omp": "lmworks.models.transplant.omp:omp",
}
NEED_AUXILIARY = frozenset({"focus", "tokenadapt", "omp"})  # they compare tokens in another space


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relation:
    """How the N ids of a new vocabulary relate to the V of an old one.

    Attributes:
        shared: (N,) int64, the old id of the same token, -1 where there is none. The M ids without
            one are `missing`, and methods give rows in that order.
        pieces: (M) old ids that spell each missing token; none for a special token without a
            counterpart and for an id that stands for nothing.
        widths: (V,) int64, bytes of each old token.
        plain: (V,) bool, which old ids are tokens of text, not special ones or unused.
    """

    shared: np.ndarray
    pieces: tuple[tuple[int, ...], ...]
    widths: np.ndarray
    plain: np.ndarray

    @functools.cached_property
    def missing(self) -> np.ndarray:
        """(M,) new ids that the old vocabulary has no token for."""
        import numpy as np

        return np.flatnonzero(self.shared < 0)

    @property
    def num_old(self) -> int:
        """V: rows of the old matrices beyond it are padding."""
        return len(self.widths)

    @functools.cached_property
    def anchors(self) -> np.ndarray:
        """New ids of the shared tokens of text."""
        import numpy as np

        found = np.flatnonzero(self.shared >= 0)
        return found[self.plain[self.shared[found]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Auxiliary:
    """Another space in which tokens of both vocabularies have vectors; a zero vector is none."""

    new: torch.Tensor  # (N, K) float32 by new id
    old: torch.Tensor  # (V, K) float32 by old id


class Method(Protocol):
    """Rows for the missing tokens, from the rows of the old ones."""

    def __call__(
        self,
        old: torch.Tensor,
        relation: Relation,
        auxiliary: Auxiliary | None,
        *,
        seed: int,
    ) -> torch.Tensor:
        """(V, D) float32 -> (M, D). The same arguments give the same bits."""
        ...


def method(name: str) -> Method:
    """The method called `name`. Raises: UserError naming the nearest known one."""
    found: Method = look_up(METHODS, name, seam="transplant_method")
    return found


def no_space(names: str) -> UserError:
    """The error for methods that are given nothing to compare tokens in."""
    return UserError(f"{names}: tokens are compared in text: give some with --text, or --donor")

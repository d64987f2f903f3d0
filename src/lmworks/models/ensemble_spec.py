"""What an ensemble is made of: `ensemble.yaml`, in a folder or by itself.

combine: logprobs
models:
  - runs/one
  - {model: runs/two, weight: 0.5}

`combine` says how the members become one distribution of the next token:

| | |
|---|---|
| `logprobs` | the weighted mean of log-probabilities: what all of them hold likely |
| `probabilities` | the weighted mean of probabilities: what any of them holds likely |
| `contrastive` | the first, less what the second holds likely as well |

or which of them answers a request, for members that need not share a vocabulary:

| | |
|---|---|
| `route` | the first whose expression `when` is in the user's last message; the last has none |
| `perplexity` | the one that reads that message in the fewest bits per byte |

Sources: Hinton 2002, products of experts; Jacobs et al. 1991, mixtures; Li et al. 2023, contrastive
decoding, arXiv 2210.15097, in the form of O'Brien & Lewis 2023, arXiv 2309.09117, section 2.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lmworks.core.config import from_mapping
from lmworks.core.errors import UserError, unknown_name
from lmworks.core.references import resolve

FILE = "ensemble.yaml"
ROUTES = ("route", "perplexity")
COMBINE = ("logprobs", "probabilities", "contrastive", *ROUTES)
_MOST = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One model of an ensemble, by reference; `when`: see `route`."""

    model: str
    weight: float = 1.0
    when: str = ""

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError("a member of an ensemble needs a reference")
        if not 0 <= self.weight < math.inf:
            raise UserError(f"{self.model}: weight {self.weight:g} must be a number from 0 up")
        try:
            re.compile(self.when)
        except re.error as error:
            raise UserError(f"{self.model}: when {self.when!r} is no expression: {error}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleSpec:
    """An ensemble.

    Attributes:
        strength: of `contrastive`, how much of the second is taken away.
        plausible: of `contrastive`, tokens are left that the first holds at least so likely, as a
            share of its likeliest.
    """

    models: tuple[Member, ...]
    combine: str = "logprobs"
    strength: float = 0.5
    plausible: float = 0.1

    def __post_init__(self) -> None:
        if self.combine not in COMBINE:
            raise unknown_name("way to combine models", self.combine, COMBINE)
        if not 2 <= len(self.models) <= _MOST:
            raise UserError(f"an ensemble has from 2 to {_MOST} models, not {len(self.models)}")
        if self.combine == "contrastive" and len(self.models) != 2:
            raise UserError("contrastive takes two models: the one that speaks, and a weaker one")
        told = [bool(member.when) for member in self.models]
        if self.combine == "route" and told != [True] * (len(told) - 1) + [False]:
            raise UserError(
                "route: each model but the last needs `when`; the last takes what is left"
            )
        if self.combine != "route" and any(told):
            raise UserError(f"`when` is for `combine: route`, not for {self.combine}")
        if not sum(member.weight for member in self.models) > 0:
            raise UserError("an ensemble needs a weight above 0")
        if not 0 <= self.strength < math.inf or not 0 < self.plausible <= 1:
            raise UserError("strength must be a number from 0 up, plausible above 0 and at most 1")

    @property
    def routes(self) -> bool:
        """Whether one member answers, and not all of them together."""
        return self.combine in ROUTES

    @property
    def weights(self) -> list[float]:
        """Of the members; they sum to 1."""
        total = sum(member.weight for member in self.models)
        return [member.weight / total for member in self.models]


def ensemble_file(path: Path | None) -> Path | None:
    """The file that tells an ensemble, if `path` leads to one."""
    if path is None:
        return None
    if path.is_dir():
        return path / FILE if (path / FILE).is_file() else None
    return path if path.suffix in (".yaml", ".yml") and path.is_file() else None


def read_ensemble(file: Path) -> EnsembleSpec:
    """The ensemble of a file; relative paths in it are seen from its folder.

    Raises: UserError naming the file, and the nearest known word.
    """
    try:
        values: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} can't be read: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is no YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(values, Mapping) or not isinstance(values.get("models"), list):
        raise UserError(f"{file}: an ensemble needs `models:` with a list of references")
    members = []
    for number, given in enumerate(values["models"], start=1):
        member = {"model": given} if isinstance(given, str) else given
        where = f"{file}, model {number}"
        members.append(_from_folder(from_mapping(Member, member, where=where), file.parent))
    return from_mapping(EnsembleSpec, {**values, "models": tuple(members)}, where=str(file))


def member_paths(file: Path, spec: EnsembleSpec) -> list[Path | None]:
    """Where the members lie; None for an endpoint.

    Raises: UserError for one that leads nowhere, and for an ensemble or router in one of its kind.
    """
    paths = []
    for member in spec.models:
        path = resolve(member.model).path
        inner = ensemble_file(path)
        if inner is not None and not spec.routes:
            raise UserError(f"{file}: {member.model} is an ensemble: name its models themselves")
        if inner is not None and read_ensemble(inner).routes:
            raise UserError(f"{file}: {member.model} is a router, which can't lie in a router")
        paths.append(path)
    return paths


def _from_folder(member: Member, folder: Path) -> Member:
    beside = folder / member.model
    return dataclasses.replace(member, model=str(beside)) if beside.exists() else member

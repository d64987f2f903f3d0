"""Which modules an adapter is put on, by patterns of their names.

A pattern is a module's name, the last parts of it (`q_proj`, `mixer.q_proj`), or a regular
expression for the whole of it; names are ours or, where the architecture has others, those of
Hugging Face (`self_attn.q_proj`, and for GPT-2 `c_attn`, which stands for three of ours).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from lmworks.core.errors import UserError, nearest
from lmworks.models.adapters.foreign import ForeignNames

if TYPE_CHECKING:
    from lmworks.models.model import Model

ALL_LINEAR = "all-linear"  # PEFT's word: every linear layer but the head


def is_linear(module: nn.Module) -> bool:
    """Whether `module` multiplies with one matrix: float32, packed, or NF4."""
    return isinstance(module, nn.Linear) or (
        hasattr(module, "in_features") and hasattr(module, "dequantized")
    )


def is_embedding(module: nn.Module) -> bool:
    """Whether `module` looks up rows of one table."""
    return isinstance(module, nn.Embedding) or (
        hasattr(module, "num_embeddings") and hasattr(module, "dequantized")
    )


def matching(
    model: Model, patterns: Sequence[str], of_kind: Callable[[nn.Module], bool], what: str
) -> dict[str, Any]:
    """The modules of a kind that any of `patterns` names, by their paths, in the model's order.

    Args:
        what: what they are called in an error: "linear layer".
    Raises: UserError for a pattern that names none, with the nearest name.
    """
    candidates = {path: module for path, module in model.named_modules() if of_kind(module)}
    names = ForeignNames(model)
    known = {path: {path, *names.of_module(path)} for path in candidates}
    chosen: set[str] = set()
    for pattern in patterns:
        if pattern == ALL_LINEAR:
            found = {path for path in candidates if path.partition(".")[0] in ("layers", "encoder")}
        else:
            found = {p for p, aliases in known.items() if any(fits(pattern, a) for a in aliases)}
        if not found:
            raise _unknown(pattern, what, known.values())
        chosen |= found
    return {path: module for path, module in candidates.items() if path in chosen}


def fits(pattern: str, name: str) -> bool:
    """Whether `pattern` names the module called `name`; see the module."""
    if name == pattern or name.endswith("." + pattern):
        return True
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error:
        return False


def _unknown(pattern: str, what: str, known: Iterable[set[str]]) -> UserError:
    ends = sorted({name.rpartition(".")[2] for names in known for name in names})
    close = nearest(pattern.rpartition(".")[2], ends)
    hint = f"did you mean {close!r}? " if close else ""
    return UserError(f"no {what} of this model is called {pattern!r}: {hint}{', '.join(ends)}")


def put(model: nn.Module, path: str, part: nn.Module) -> None:
    """Put `part` at `path`."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, part)

"""`load_ensemble`: the members that a file names, as one model with one tokenizer.

Members have one vocabulary: an id stands for the same token in all of them. Prompts are rendered
with the first one's chat template. Models whose vocabularies differ can't be put together token by
token; they are named, with the first id that differs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
from lmworks.models.ensemble_spec import member_paths, read_ensemble

if TYPE_CHECKING:
    from lmworks.models.ensemble import EnsembleModel


def load_ensemble(file: Path) -> tuple[EnsembleModel, Any, Path]:
    """The model, the first member's tokenizer, and where that member lies.

    Raises: UserError for a member that is an ensemble or an endpoint, or of another vocabulary.
    """
    from lmworks.models.ensemble import EnsembleModel
    from lmworks.models.load import load_language_model
    from lmworks.tokenizers.load import load_tokenizer

    spec = read_ensemble(file)
    members, tokenizers, paths = [], [], []
    for member, path in zip(spec.models, member_paths(file, spec), strict=True):
        if path is None:
            raise UserError(
                f"{file}: {member.model} is an endpoint, which gives no probabilities: name models "
                "that lie here"
            )
        members.append(load_language_model(path, packed=True))
        tokenizers.append(load_tokenizer(path))
        paths.append(path)
        check_same_vocabulary(tokenizers[0], tokenizers[-1], spec.models[0].model, member.model)
    return EnsembleModel(members, spec).eval(), tokenizers[0], paths[0]


def check_same_vocabulary(tokenizer: Any, other: Any, name: str, other_name: str) -> None:
    """Raises: UserError where an id that both have stands for two tokens."""
    from lmworks.inference.draft_model import first_difference

    if (found := first_difference(tokenizer, other)) is not None:
        token_id, mine, theirs = found
        raise UserError(
            f"{other_name} has another vocabulary than {name}: id {token_id} is {theirs!r} there "
            f"and {mine!r} here; their probabilities can't be put together token by token"
        )

"""Whether models read text alike: rows of embeddings can be merged only if they mean one token."""

from __future__ import annotations

from collections.abc import Mapping

from lmworks.core.errors import UserError
from lmworks.models.merging.sources import GGUFSource, Source

_SHOWN = 3
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "tekken.json", "vocab.txt")


def check_tokenizers(sources: Mapping[str, Source], lead: Source) -> bool:
    """Whether the lead has a tokenizer; models without one are taken at its word.

    Raises: UserError if two vocabularies differ, with the first tokens that do.
    """
    mine = _vocabulary(lead)
    for source in sources.values():
        theirs = _vocabulary(source)
        if mine is None or theirs is None or theirs == mine:
            continue
        pairs = zip(mine, theirs, strict=False)
        odd = [f"{i}: {a!r} and {b!r}" for i, (a, b) in enumerate(pairs) if a != b]
        count = len(odd) + abs(len(mine) - len(theirs))
        shown = "; ".join(odd[:_SHOWN]) or f"{len(mine)} tokens and {len(theirs)}"
        raise UserError(
            f"{lead.reference} and {source.reference} have different tokenizers, {count} ids stand "
            f"for other tokens ({shown}): put one tokenizer into both with `lmworks model "
            "transplant`"
        )
    return mine is not None


def _vocabulary(source: Source) -> tuple[str, ...] | None:
    from lmworks.tokenizers.load import load_tokenizer

    if not has_tokenizer(source):
        return None
    return load_tokenizer(source.path).vocabulary.texts


def has_tokenizer(source: Source) -> bool:
    """Whether the model's files hold a vocabulary."""
    if isinstance(source, GGUFSource):
        return "tokenizer.ggml.tokens" in source.metadata
    return any((source.path / name).is_file() for name in TOKENIZER_FILES)

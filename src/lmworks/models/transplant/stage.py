"""Stage `transplant`: a model and another tokenizer in, a model with that tokenizer out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import REFERENCE, option
from lmworks.core.progress import say
from lmworks.core.stages import Run, stage
from lmworks.models.transplant.base import METHODS, NEED_AUXILIARY, no_space
from lmworks.models.transplant.settings import StaticEmbeddingConfig

if TYPE_CHECKING:
    from lmworks.models.transplant.base import Auxiliary, Relation
    from lmworks.tokenizers.tokenizer import PipelineTokenizer

_MOST_NAMED = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransplantConfig:
    """Give a trained model another tokenizer, with rows for its new tokens.

    Tokens that both have keep their rows. The model is not trained; what it loses at first, and
    by which method the least, `lmworks eval transplant` measures.

    Examples:
        lmworks model transplant --model smollm2-135m --tokenizer runs/tokenizer --out runs/moved
        lmworks model transplant --model runs/base --tokenizer runs/law-tokenizer \\
            --method tokenadapt --text law.txt --out runs/law
    """

    model: str = option(role=REFERENCE, help="model folder or reference")
    tokenizer: str = option(role=REFERENCE, help="the new tokenizer")
    method: str = option("subtokens", help=f"how new rows begin: {', '.join(METHODS)}")
    text: str = option(
        "", role=REFERENCE, help="text of the field (corpus folder, .txt, .jsonl) to compare in"
    )
    donor: str = option("", role=REFERENCE, help="model whose embedding is compared in instead")
    pad_to_multiple_of: int = option(1, help="the vocabulary's size becomes a multiple of it")
    auxiliary: StaticEmbeddingConfig = option(StaticEmbeddingConfig(), help="made of the text")
    seed: int = option(0, help="same seed, same bytes")


@stage("transplant", makes="model")
def transplant_stage(config: TransplantConfig, run: Run) -> dict[str, Any]:
    """Compare the vocabularies, make rows, save; see TransplantConfig."""
    from lmworks.models.load import load_language_model
    from lmworks.models.save import save_model
    from lmworks.models.transplant.base import method
    from lmworks.models.transplant.relation import relate
    from lmworks.models.transplant.surgery import transplant
    from lmworks.tokenizers.load import load_tokenizer

    method(config.method)  # an unknown name is told before anything is loaded
    old, new = load_tokenizer(run.inputs["model"]), load_tokenizer(run.inputs["tokenizer"])
    relation = relate(old, new)
    auxiliary = auxiliary_for(
        [config.method], old, new, relation, run.inputs, config.auxiliary, seed=config.seed
    )
    changed = transplant(
        load_language_model(run.inputs["model"]),
        relation,
        config.method,
        auxiliary=auxiliary,
        seed=config.seed,
        pad_to_multiple_of=config.pad_to_multiple_of,
    )
    facts = summary(new, relation)
    save_model(changed, run.folder, tokenizer=new, card=_card(config, facts))
    return {**facts, "vocab_size": changed.config.vocab_size}


def auxiliary_for(
    methods: Sequence[str],
    old: PipelineTokenizer,
    new: PipelineTokenizer,
    relation: Relation,
    inputs: Mapping[str, Path],
    config: StaticEmbeddingConfig,
    *,
    seed: int,
) -> Auxiliary | None:
    """The space that the methods compare tokens in: the donor's, else one made of the text.

    Returns: None when no method needs one.
    Raises: UserError when one does, and there is neither donor nor text.
    """
    needing = NEED_AUXILIARY.intersection(methods)
    if not needing:
        return None
    if "donor" in inputs:
        from lmworks.models.load import load_language_model
        from lmworks.models.transplant.donor import donor_space
        from lmworks.tokenizers.load import load_tokenizer

        donor = inputs["donor"]
        return donor_space(load_language_model(donor), load_tokenizer(donor), old, new)
    if "text" not in inputs:
        raise no_space(", ".join(sorted(needing)))
    from lmworks.models.transplant.static_embedding import static_embedding

    return static_embedding(old, new, relation, read_field(inputs["text"]), config, seed=seed)


def read_field(path: Path) -> Iterator[str]:
    """The texts of a corpus folder's training part, or of a file."""
    from lmworks.tokenizers.train import read_texts

    return read_texts(path / "train.jsonl" if path.is_dir() else path)


def summary(new: PipelineTokenizer, relation: Relation) -> dict[str, Any]:
    """How many tokens are shared, and which have nothing in the old vocabulary at all."""
    lost = [
        new.token_text(int(token))
        for token, pieces in zip(relation.missing, relation.pieces)
        if not pieces and new.vocabulary.tokens[token]
    ]
    if lost:
        named = ", ".join(map(repr, lost[:_MOST_NAMED]))
        say(f"  without counterpart, beginning as the mean of all: {len(lost)} ({named})")
    return {
        "num_shared": int((relation.shared >= 0).sum()),
        "num_new": len(relation.missing),
        "num_without_counterpart": len(lost),
        "without_counterpart": lost[:_MOST_NAMED],
    }


def _card(config: TransplantConfig, facts: dict[str, Any]) -> str:
    return (
        f"Made of {Path(config.model).name} by giving it the tokenizer "
        f"{Path(config.tokenizer).name}: {facts['num_shared']:,} tokens kept their rows, "
        f"{facts['num_new']:,} new ones begin by the method `{config.method}`. It was not trained "
        "after that.\n"
    )

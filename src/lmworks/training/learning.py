"""What `pretrain` learns: an objective, the kind of model for it, and the batches it asks about.

An encoder fills gaps and finds replaced tokens, an encoder-decoder tells spans that were taken out,
a decoder foretells. All are built from the same pattern of layers and the same dial. What can't
learn an objective is refused before anything is read, with what could.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lmworks.core import progress
from lmworks.core.errors import UserError, unknown_name
from lmworks.training.objectives.base import OBJECTIVES, build_objective

if TYPE_CHECKING:
    from lmworks.models.config import ModelConfig
    from lmworks.models.config.patterns import Sizes
    from lmworks.tokenizers.tokenizer import PipelineTokenizer
    from lmworks.training.batches import Rows
    from lmworks.training.curriculum.base import Windows
    from lmworks.training.objectives.text import Architecture, TextObjective, TokenFacts
    from lmworks.training.pretrain import PretrainConfig

PRETRAINING = ("causal", "masked", "prefix", "permutation", "replaced_token", "span_corruption")
_CORRUPTION = 0xC0  # parts the draws of objectives from other draws of the same (seed, step)
_ROWS_AT_A_TIME = 8  # of held-out text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learning:
    """An objective that is ready for a corpus.

    Attributes:
        tokenizer: with the tokens that the objective puts in.
        added: texts of those that it lacked.
    """

    objective: TextObjective
    architecture: Architecture
    tokenizer: PipelineTokenizer
    facts: TokenFacts
    added: tuple[str, ...]

    def batches(self, windows: Windows, seed: int) -> CorruptedWindows:
        """What training asks, step by step."""
        return CorruptedWindows(windows, self, seed)

    def heldout(self, tokens: np.ndarray, *, context_length: int, count: int) -> list[Rows]:
        """The same questions about the first `count` windows of held-out text, whoever asks."""
        from lmworks.training.tokens import leading_ids

        ids = leading_ids(tokens, context_length=context_length, count=count)
        parts = [ids[i : i + _ROWS_AT_A_TIME] for i in range(0, len(ids), _ROWS_AT_A_TIME)]
        return [
            self.objective.corrupt(part, np.random.default_rng([_CORRUPTION, i]), self.facts)
            for i, part in enumerate(parts)
        ]


class CorruptedWindows:
    """Windows of a stream, corrupted anew at every step; a pure function of (seed, step)."""

    def __init__(self, windows: Windows, learning: Learning, seed: int) -> None:
        self._windows, self._learning, self._seed = windows, learning, seed

    def __call__(self, step: int) -> Rows:
        """Batch number `step`."""
        random = np.random.default_rng([self._seed, step, _CORRUPTION])
        learning = self._learning
        return learning.objective.corrupt(self._windows.windows(step), random, learning.facts)


def objective_for(config: PretrainConfig) -> tuple[TextObjective, Architecture]:
    """The objective, and the kind of model that learns it.

    Raises: UserError for a name, a setting or an architecture that does not go with the rest.
    """
    if config.objective not in PRETRAINING:
        if config.objective in OBJECTIVES:
            raise UserError(
                f"objective {config.objective} does not learn from plain text: choose from "
                f"{', '.join(PRETRAINING)}"
            )
        raise unknown_name("objective", config.objective, PRETRAINING)
    objective = _built(config.objective, config.settings)
    architecture = objective.architectures[0]
    if config.architecture != "auto":
        architecture = config.architecture
    elif getattr(objective, "decoder", False):
        architecture = "decoder"
    if architecture not in objective.architectures:
        could = [name for name in PRETRAINING if architecture in _built(name, {}).architectures]
        raise UserError(
            f"objective {config.objective} can't be learned by a model of kind {architecture}, but "
            f"by {' or '.join(objective.architectures)}; {architecture} can learn "
            f"{', '.join(could)}"
        )
    if config.loop.sample_every and architecture != "decoder":
        raise UserError("loop.sample_every: only a decoder continues text; set it to 0")
    return objective.for_architecture(architecture), architecture


def _built(name: str, settings: dict[str, Any]) -> TextObjective:
    from lmworks.training.objectives.causal import CausalLM

    if name == "causal":
        build_objective(name, settings)  # which has none
        return CausalLM()
    return cast("TextObjective", build_objective(name, settings))


def prepare(config: PretrainConfig, tokenizer: PipelineTokenizer) -> Learning:
    """All that `pretrain` needs of an objective; tokens that the tokenizer lacks are added to it.

    Raises: UserError as `objective_for`, or for a tokenizer without a separator.
    """
    from lmworks.tokenizers.reserved import with_reserved
    from lmworks.training.objectives.text import facts_of

    objective, architecture = objective_for(config)
    apart = config.packing == "documents"
    if apart and architecture == "encoder-decoder":
        raise UserError("packing = documents: an encoder-decoder reads one text for each row")
    filled = with_reserved(
        tokenizer,
        mask=objective.needs_mask,
        num_sentinels=objective.num_sentinels(config.context_length),
    )
    added = tuple(t.text for t in filled.vocabulary.added_tokens if t.id >= tokenizer.vocab_size)
    if added:
        names = added[0] if len(added) == 1 else f"{added[0]} to {added[-1]}"
        progress.say(f"the tokenizer has no token for what is taken out: {names} added")
    return Learning(
        objective=objective,
        architecture=architecture,
        tokenizer=filled,
        facts=facts_of(filled, apart=apart),
        added=added,
    )


def config_for(
    config: PretrainConfig, objective: TextObjective, architecture: Architecture, vocab_size: int
) -> ModelConfig:
    """The architecture; of a generator and a discriminator the latter's.

    Raises: UserError for layers that can't learn the objective, naming some that can.
    """
    from lmworks.models.config import ValueHeadConfig
    from lmworks.models.config.patterns import (
        decoder_config,
        encoder_config,
        encoder_decoder_config,
    )
    from lmworks.training.objectives.replaced_token import ReplacedToken
    from lmworks.training.pretrain import sizes_of

    shape: dict[str, Any] = {"depth": config.depth, "vocab_size": vocab_size}
    shape["sizes"] = sizes_of(config)
    if architecture == "encoder-decoder":
        return encoder_decoder_config(config.layers, **shape)
    if architecture == "encoder":
        head = None
        if isinstance(objective, ReplacedToken):
            head = ValueHeadConfig(transform="gelu", bias=True)
        return encoder_config(config.layers, head=head, **shape)
    found = decoder_config(config.layers, **shape)
    told = objective.told | ({"documents"} if config.packing == "documents" else set())
    _check_layers(config.objective, found, told)
    return found


def _check_layers(name: str, found: ModelConfig, told: frozenset[str]) -> None:
    for layer in found.layers:
        for part in filter(None, (layer.mixer, layer.feed_forward)):
            if missing := told - part.honours():
                raise UserError(
                    f"objective {name} needs layers that honour {' and '.join(sorted(missing))}, "
                    f"which {part.kind} can't: choose layers among attention, window and nope, or "
                    "objective causal"
                )


def generator_config(
    config: PretrainConfig, share: float, discriminator: ModelConfig
) -> ModelConfig:
    """An encoder as deep as the discriminator, `share` as wide, over the same table of tokens."""
    from lmworks.models.config import EmbeddingConfig
    from lmworks.models.config.patterns import encoder_config
    from lmworks.training.pretrain import sizes_of

    return encoder_config(
        config.layers,
        depth=config.depth,
        vocab_size=discriminator.vocab_size,
        sizes=narrower(sizes_of(config), share),
        embedding=EmbeddingConfig(size=discriminator.hidden_size),
    )


def narrower(sizes: Sizes, share: float) -> Sizes:
    """Sizes of about `share` of the width, a multiple of 32; all else follows from it."""
    width = min(sizes.hidden_size, max(32, round(sizes.hidden_size * share / 32) * 32))
    return dataclasses.replace(
        sizes,
        hidden_size=width,
        num_attention_heads=0,
        num_key_value_heads=0,
        intermediate_size=0,
    )


def build_model(config: PretrainConfig, vocab_size: int) -> Any:
    """A `Model`, or a `GeneratorDiscriminator`, with arbitrary weights."""
    from lmworks.models.generator_discriminator import GeneratorDiscriminator
    from lmworks.models.model import Model
    from lmworks.training.objectives.replaced_token import ReplacedToken

    objective, architecture = objective_for(config)
    found = config_for(config, objective, architecture, vocab_size)
    if not isinstance(objective, ReplacedToken):
        return Model(found)
    return GeneratorDiscriminator(generator_config(config, objective.generator_size, found), found)


def heldout_metrics(model: Any, learning: Learning, heldout: Sequence[Rows]) -> dict[str, float]:
    """What the objective measures beside its loss, on held-out text: accuracies."""
    from lmworks.training.fitting import figures_on

    figures = figures_on(model, learning.objective, heldout)
    figures.pop("loss", None)
    return {f"heldout_{name}": round(value, 6) for name, value in figures.items()}


def save(model: Any, folder: Path, learning: Learning, card: str) -> None:
    """Write the model; of two that learned together the discriminator, and `generator/` in it."""
    from lmworks.models.generator_discriminator import GeneratorDiscriminator
    from lmworks.models.save import save_model

    if not isinstance(model, GeneratorDiscriminator):
        save_model(model, folder, tokenizer=learning.tokenizer, card=card)
        return
    save_model(model.discriminator, folder, tokenizer=learning.tokenizer, card=card)
    told = "The generator that the discriminator in the folder above learned from: it fills gaps."
    save_model(model.generator, folder / "generator", tokenizer=learning.tokenizer, card=told)


KINDS = {
    "decoder": "It is a base model: it continues text.",
    "encoder": "It reads text both ways: it fills gaps, and is to be tuned for a task.",
    "encoder-decoder": "It tells what was taken out of a text, and is to be tuned for a task.",
}

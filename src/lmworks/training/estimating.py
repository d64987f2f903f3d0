"""The estimate of a pre-training from its settings alone: no corpus, no weights, no run."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lmworks.core.errors import UserError
from lmworks.training.memory_advice import what_to_lower
from lmworks.training.memory_estimate import MemoryEstimate, estimate, process_baseline

if TYPE_CHECKING:
    from lmworks.training.pretrain import PretrainConfig
    from lmworks.training.trainer_config import LoopConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """Whether a training fits, and what to change if not.

    Attributes:
        estimate: of the settings as they are.
        fits: whether it stays under the limit; None without one.
        advice: what to change, or "".
        num_parameters: of the model.
    """

    estimate: MemoryEstimate
    fits: bool | None
    advice: str
    num_parameters: int


def forecast(config: PretrainConfig, vocab_size: int, *, limit: int = 0) -> Forecast:
    """Estimate what `train pretrain` with this config would take.

    Args:
        limit: bytes that there are; 0 asks for no judgement.
    Raises: UserError for an objective other than next tokens, whose batches need a corpus.
    """
    import torch

    from lmworks.models.skeleton import skeleton
    from lmworks.training.batches import Batch
    from lmworks.training.objectives.causal import causal
    from lmworks.training.pretrain import model_config
    from lmworks.training.threads import set_threads

    if config.objective != "causal":
        raise UserError(
            f"objective {config.objective} makes its batches out of a corpus: its training tells "
            "what it will take when it starts; estimated beforehand is only causal"
        )
    set_threads(config.threads)
    model = skeleton(model_config(config, vocab_size))
    ids = torch.zeros(config.batch_size, config.context_length, dtype=torch.long)
    batch = Batch(input_ids=ids, labels=ids)

    def estimate_of(loop: LoopConfig) -> MemoryEstimate:
        return estimate(
            model, causal, batch, loop, heldout=[batch.rows(0, 8)], baseline=process_baseline()
        )

    found = estimate_of(config.loop)
    fits = found.peak <= limit if limit else None
    advice = ""
    if fits is False:
        advice = what_to_lower(estimate_of, config.loop, config.batch_size, limit).words
    return Forecast(
        estimate=found,
        fits=fits,
        advice=advice,
        num_parameters=sum(p.numel() for p in model.parameters()),
    )

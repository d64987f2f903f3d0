"""The settings of a series of runs over sizes and tokens."""

from __future__ import annotations

import dataclasses

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.training.trainer_config import LoopConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """Small runs over sizes and tokens, the law that they follow, and a larger run that tests it.

    Every budget is spent on every width: small models read much, large ones little. The law is
    fitted to the losses and foretells the best run at TARGET times the largest budget, with an
    interval. That run is then made, and the page says whether it lies inside.

    Examples:
        lmworks eval scaling --corpus runs/corpus --tokenizer runs/tokenizer --out runs/scaling
        lmworks eval scaling --corpus runs/corpus --tokenizer runs/tokenizer \\
            --flops 2e12 --widths '[64, 96, 128, 192, 256]' --target 8
        lmworks eval scaling --runs measured.csv --target 4
    """

    corpus: str = option("", role=REFERENCE, help="corpus folder (train.jsonl, heldout.jsonl)")
    tokenizer: str = option("", role=REFERENCE, help="tokenizer folder or reference")
    runs: str = option(
        "", role=REFERENCE, help="CSV of runs made elsewhere: parameters, tokens, loss"
    )
    flops: float = option(3e11, help="operations of each run of the largest budget")
    num_budgets: int = option(3, help="budgets, each a third of the next")
    widths: list[int] = option([32, 48, 64, 96, 128], help="of the models; layers follow")
    target: float = option(4.0, help="times the largest budget: the run that is foretold; 0: none")
    context_length: int = option(128, help="tokens a model can look back")
    batch_size: int = option(4, help="rows of context_length tokens per step")
    min_steps: int = option(40, help="runs of fewer steps are left out: they learn by other laws")
    num_resamples: int = option(200, help="laws fitted anew for the intervals")
    max_documents: int = option(200, help="held-out documents to measure; 0 takes all")
    seed: int = option(0, help="same seed, same bytes")
    loop: LoopConfig = option(LoopConfig(), help="schedule and optimizer", flag=False)
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")

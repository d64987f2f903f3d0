"""The trainer's settings, apart from the trainer so that the command line need not load torch."""

from __future__ import annotations

import dataclasses
from typing import Literal

from lmworks.core.config import COSMETIC, option
from lmworks.training.distributed.plan import ParallelConfig
from lmworks.training.optimizers.base import OptimizerConfig
from lmworks.training.schedules import CooldownConfig
from lmworks.training.spikes import SpikeConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How fast, how it comes down, how often to look, and how a step is computed."""

    warmup_steps: int = option(40, help="steps over which the learning rate rises")
    schedule: str = option("wsd", help="wsd, cosine, linear, constant or inverse_sqrt")
    cooldown: CooldownConfig = option(CooldownConfig(), help="how the rate comes down at the end")
    eval_every: int = option(50, help="steps between looks at held-out text")
    patience: int = option(0, help="looks without a new lowest loss before the end; 0: no limit")
    sample_every: int = option(0, help="steps between texts that the model continues; 0: none")
    ema: float = option(0.0, help="decay of an average of the weights that is kept; 0: the last")
    optimizer: OptimizerConfig = option(OptimizerConfig(), help="which optimizer, and its rates")
    spikes: SpikeConfig = option(SpikeConfig(), help="what is done about loss spikes")
    qat: str = option("", help="see the weights rounded to this GGUF type while training, as Q4_0")
    keep_zeros: bool = option(False, help="weights that are zero stay zero (a sparse model)")
    # How a step is computed: memory and speed, and of the result no more than the rounding.
    micro_batch_size: int = option(0, help="rows at a time, gradients summed; 0: all of a step's")
    precision: Literal["float32", "bfloat16", "float16"] = option(
        "float32", help="of the products; weights stay float32"
    )
    activation_checkpointing: bool = option(
        False, help="compute each layer again for its gradient instead of keeping what it made"
    )
    compile: bool = option(False, help="let torch.compile fuse the layers (needs a C++ compiler)")
    parallel: ParallelConfig = option(
        ParallelConfig(), role=COSMETIC, help="how the work is spread over processes"
    )
    device: str = option("auto", help="cpu, cuda, cuda:1; auto takes a GPU if there is one")

"""A time budget turned into sizes: how deep a model, how many steps, on this machine.

The plan is made once, from a short measurement, and written down; a run that goes on reads it
back, since another measurement would give other numbers of steps and so other weights.
"""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lmworks.core.config import from_mapping, to_mapping
from lmworks.core.errors import UserError
from lmworks.core.files import read_json, write_json

if TYPE_CHECKING:
    from lmworks.training.pretrain import PretrainConfig

MIN_BUDGET_S = 60

# Shares of the time that is left after corpus, tokenizer and measurement. The rest goes to the
# evaluation, the 8-bit weights, the samples and the report.
_PRETRAIN_SHARE = 0.68
_SFT_SHARE = 0.10

# Deepest model for a number of tokens that depth 4 could be trained on in the time there is: more
# compute is split between a larger model and more tokens. Found by trial, see docs/log.md.
_DEPTHS = ((0, 2), (120_000, 3), (450_000, 4), (4_000_000, 5), (12_000_000, 6), (50_000_000, 8))
_REFERENCE_DEPTH = 4
_MAX_EPOCHS = 8.0  # beyond that a corpus is learnt by heart, not better
_MEASURED_STEPS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What the budget buys. `tokens_per_s` is what was measured, of the chosen depth."""

    depth: int
    context_length: int
    batch_size: int
    pretrain_steps: int
    sft_steps: int
    tokens_per_s: float


def parse_duration(text: str) -> float:
    """`90s`, `5m`, `1h30m` in seconds. Raises: UserError for anything else, and under a minute."""
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip().lower())
    if not match or not any(match.groups()):
        raise UserError(f"budget {text!r}: write it as 90s, 5m or 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    total = hours * 3600 + minutes * 60 + seconds
    if total < MIN_BUDGET_S:
        raise UserError(f"budget {text!r}: at least {MIN_BUDGET_S}s are needed to show anything")
    return float(total)


def load_or_make_plan(path: Path, key: str, base: PretrainConfig, seconds_left: float) -> Plan:
    """The plan at `path` if it was made for the same `key`, else a new one, written there.

    Args:
        key: a hash of all that the plan depends on but the machine's speed.
        base: a pre-training config with corpus and tokenizer; its sizes are replaced.
    """
    if path.is_file():
        saved = read_json(path, "plan")
        if isinstance(saved, dict) and saved.get("key") == key and "plan" in saved:
            return from_mapping(Plan, saved["plan"], where=str(path))
    plan = _make_plan(base, seconds_left)
    write_json(path, {"key": key, "plan": to_mapping(plan)})
    return plan


def _make_plan(base: PretrainConfig, seconds_left: float) -> Plan:
    from lmworks.tokenizers.load import load_tokenizer

    started = time.monotonic()
    vocab_size = load_tokenizer(base.tokenizer).vocab_size
    num_tokens = _count_tokens(base)
    context_length = 256 if num_tokens > 50_000 else 64
    base = dataclasses.replace(base, context_length=context_length)
    rate = tokens_per_s(dataclasses.replace(base, depth=_REFERENCE_DEPTH), vocab_size)
    seconds = _PRETRAIN_SHARE * (seconds_left - (time.monotonic() - started))
    depth = max(depth for least, depth in _DEPTHS if rate * seconds >= least)
    if depth != _REFERENCE_DEPTH:
        rate = tokens_per_s(dataclasses.replace(base, depth=depth), vocab_size)
    left = seconds_left - (time.monotonic() - started)
    per_step = base.batch_size * context_length
    most = _MAX_EPOCHS * num_tokens
    return Plan(
        depth=depth,
        context_length=context_length,
        batch_size=base.batch_size,
        pretrain_steps=max(20, int(min(rate * left * _PRETRAIN_SHARE, most) / per_step)),
        sft_steps=max(10, int(rate * left * _SFT_SHARE / per_step)),
        tokens_per_s=round(rate, 1),
    )


def _count_tokens(base: PretrainConfig) -> int:
    """Tokens of the training text, from its bytes and the tokenizer's measured bytes per token."""
    from lmworks.core.stages import Artifact

    corpus = Artifact.load(base.corpus)
    tokenizer = Artifact.load(base.tokenizer)
    return round(corpus.metrics["train_bytes"] / tokenizer.metrics["bytes_per_token"])


def tokens_per_s(config: PretrainConfig, vocab_size: int) -> float:
    """Training speed of a model of this config on this machine: the median of a few real steps."""
    import statistics

    import torch

    from lmworks.training.batches import Batch
    from lmworks.training.objectives.causal import causal
    from lmworks.training.optimizers.base import build_optimizer
    from lmworks.training.pretrain import new_model
    from lmworks.training.threads import set_threads

    set_threads(config.threads)
    model = new_model(config, vocab_size).train()
    optimizer = build_optimizer(model, config.loop.optimizer)
    shape = (config.batch_size, config.context_length)
    ids = torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(0))
    batch = Batch(input_ids=ids, labels=ids)
    seconds = []
    for _ in range(_MEASURED_STEPS + 2):
        started = time.perf_counter()
        model.zero_grad(set_to_none=True)
        causal(model, batch).value.backward()  # type: ignore[no-untyped-call]
        optimizer.step(1.0)
        seconds.append(time.perf_counter() - started)
    return ids.numel() / statistics.median(seconds[2:])

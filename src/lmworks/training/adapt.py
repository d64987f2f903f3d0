"""Stage `adapt`: a trained model goes on learning from the text of one field.

The same next-token loss as in pre-training, on windows of a corpus; the model is held to general
text while it learns (`retention`), and what it forgets is measured and can be given a budget.

Source: Gururangan et al. 2020, arXiv 2004.10964, section 3 (domain-adaptive pre-training).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.stages import Run, stage
from lmworks.training.fitting import fit_stage, steps_of
from lmworks.training.optimizers.base import OptimizerConfig
from lmworks.training.retention.config import RetentionConfig
from lmworks.training.trainer_config import LoopConfig

_GENTLE = LoopConfig(
    warmup_steps=10,
    eval_every=20,
    optimizer=OptimizerConfig(name="adamw", learning_rate=1e-4, weight_decay=0.01),
)
_HELDOUT_WINDOWS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Go on pre-training a model on the text of a field, without it forgetting the rest.

    Examples:
        lmworks train adapt --model smollm2-135m --corpus runs/law --out runs/law-model
        lmworks train adapt --model smollm2-135m --corpus runs/law --general runs/wikipedia \\
            --retention kl --forgetting-budget 1%
    """

    model: str = option(role=REFERENCE, help="the model to start from")
    corpus: str = option(role=REFERENCE, help="corpus of the field (train.jsonl, heldout.jsonl)")
    general: str = option("", role=REFERENCE, help="corpus of what must not be forgotten")
    retention: str = option("replay", help="how it is held: replay, kl, ewc, l2, interpolate, none")
    replay: float = option(0.25, help="share of the steps that replay and kl give to general text")
    forgetting_budget: str = option(
        "", help="the most that the loss on held-out general text may rise, as 1%"
    )
    epochs: float = option(1.0, help="passes over the corpus, unless --num-steps is given")
    num_steps: int = option(0, help="training steps; 0 derives them from --epochs")
    batch_size: int = option(8, help="rows of context_length tokens per step")
    context_length: int = option(256, help="tokens of a row; the model's own limit stays")
    seed: int = option(0, help="same seed, same bytes")
    forgetting: RetentionConfig = option(
        RetentionConfig(), help="how general text is held and looked at", flag=False
    )
    loop: LoopConfig = option(_GENTLE, help="schedule and optimizer", flag=False)
    checkpoint_every_s: float = option(30.0, role=COSMETIC, help="seconds between checkpoints")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@stage("adapt", makes="model", many_processes=True)
def adapt(config: AdaptConfig, run: Run) -> dict[str, Any]:
    """Train on the field's text; see AdaptConfig."""
    from lmworks.models.load import load_language_model
    from lmworks.models.save import save_model
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.callbacks.same_data import SameData, fingerprint
    from lmworks.training.callbacks.samples import watch_text
    from lmworks.training.pretrain import cached_stream
    from lmworks.training.retention.hold import check_plan, hold
    from lmworks.training.sft import context_length
    from lmworks.training.threads import set_threads
    from lmworks.training.tokens import PackedWindows, leading_windows

    check_plan(config.loop.parallel, config.retention)
    set_threads(config.threads)
    tokenizer = load_tokenizer(run.inputs["model"])
    model = load_language_model(run.inputs["model"])
    length = context_length(config.context_length, model)
    tokens = cached_stream(run.inputs["corpus"] / "train.jsonl", tokenizer, run.work)
    heldout = cached_stream(run.inputs["corpus"] / "heldout.jsonl", tokenizer, run.work)
    windows = PackedWindows(
        tokens, context_length=length, batch_size=config.batch_size, seed=config.seed
    )
    held = hold(
        windows,
        model,
        tokenizer,
        corpus=run.inputs.get("general"),
        method=config.retention,
        share=config.replay,
        budget=config.forgetting_budget,
        config=config.forgetting,
        context_length=length,
        batch_size=config.batch_size,
        seed=config.seed,
        work=run.work,
    )
    looked_at = leading_windows(heldout, context_length=length, count=_HELDOUT_WINDOWS)
    watched = watch_text(tokenizer, looked_at, config.loop)
    fitted = fit_stage(
        model,
        held.objective,
        held.batches,
        config,
        work=run.work,
        label="learning the field",
        num_steps=steps_of(config, windows.batches_per_epoch, elsewhere=held.share),
        heldout=looked_at,
        callbacks=[
            SameData({"the corpus": fingerprint(tokens)}),
            *held.callbacks,
            *watched["callbacks"],
        ],
        show=watched["show"],
    )
    metrics = fitted.metrics | {"corpus_tokens": len(tokens)} | held.figures()
    save_model(model, run.folder, tokenizer=tokenizer, card=_card(config, metrics))
    fitted.write(run.folder, general=held.looks)
    return metrics


def _card(config: AdaptConfig, metrics: dict[str, Any]) -> str:
    return (
        f"`{Path(config.model).name}`, trained on for {metrics['num_steps']} steps "
        f"({metrics['num_targets']:,} tokens) on the corpus `{Path(config.corpus).name}`."
    )

"""Stage `sft`: supervised fine-tuning of a model on conversations, loss on the answers only.

A share of the steps replays the pre-training text, which holds the model's knowledge of it
(de Masson d'Autume et al. 2019, episodic replay); with `replay=0` nothing is replayed.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.files import write_json
from lmworks.core.stages import Run, stage
from lmworks.training.optimizers.base import OptimizerConfig
from lmworks.training.trainer_config import LoopConfig

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.batches import Batch
    from lmworks.training.conversations import Conversations

_GENTLE = LoopConfig(
    warmup_steps=20,
    eval_every=25,
    optimizer=OptimizerConfig(name="adamw", learning_rate=6e-4, weight_decay=0.01),
)
_HELDOUT_ROWS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Teach a model to answer: supervised fine-tuning on conversations.

    Examples:
        lmworks train sft --model runs/base --questions runs/questions --out runs/chat
        lmworks train sft --model runs/base --questions runs/questions --corpus runs/corpus \\
            --replay 0.3 --epochs 2
    """

    model: str = option(role=REFERENCE, help="the model to start from")
    questions: str = option(role=REFERENCE, help="dataset folder (train.jsonl with messages)")
    corpus: str = option("", role=REFERENCE, help="corpus to replay, so that it is not forgotten")
    replay: float = option(0.4, help="share of the steps that replay the corpus, 0 to 1")
    epochs: float = option(3.0, help="passes over the conversations, unless --num-steps is given")
    num_steps: int = option(0, help="training steps; 0 derives them from --epochs")
    batch_size: int = option(16, help="conversations per step")
    seed: int = option(0, help="same seed, same bytes")
    loop: LoopConfig = option(_GENTLE, help="schedule and optimizer", flag=False)
    checkpoint_every_s: float = option(30.0, role=COSMETIC, help="seconds between checkpoints")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@stage("sft", makes="model")
def sft(config: SFTConfig, run: Run) -> dict[str, Any]:
    """Fine-tune on answers; see SFTConfig."""
    from lmworks.models.load import load_language_model
    from lmworks.models.save import save_model
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.callbacks.samples import watch_text
    from lmworks.training.objectives.causal import causal
    from lmworks.training.pretrain import summary
    from lmworks.training.threads import set_threads
    from lmworks.training.trainer import Trainer

    if not 0 <= config.replay < 1:
        raise UserError(f"replay = {config.replay}: a share of steps, from 0 up to below 1")
    threads = set_threads(config.threads)
    tokenizer = load_tokenizer(run.inputs["model"])
    model = load_language_model(run.inputs["model"])
    conversations = _conversations(
        run.inputs["questions"] / "train.jsonl", tokenizer, model, config
    )
    if not len(conversations):
        raise UserError(
            f"none of the {conversations.num_too_long} conversations fits into the model's "
            f"{model.config.max_position_embeddings} tokens: nothing to train on"
        )
    share = config.replay if config.corpus else 0.0
    steps = math.ceil(config.epochs * conversations.batches_per_epoch / (1 - share))
    num_steps = config.num_steps or max(1, steps)
    heldout = _heldout(run.inputs["questions"], tokenizer, model, config)
    started = time.monotonic()
    history = Trainer(
        model,
        causal,
        _with_replay(conversations, tokenizer, model, config, run) if share else conversations,
        config.loop,
        num_steps=num_steps,
        heldout=heldout,
        work=run.work,
        seed=config.seed,
        checkpoint_every_s=config.checkpoint_every_s,
        **watch_text(tokenizer, heldout, config.loop),
    ).fit("instruction tuning")
    seconds = time.monotonic() - started
    metrics = summary(history, model, num_steps=num_steps, seconds=seconds, threads=threads)
    metrics["num_conversations"] = len(conversations)
    metrics["num_too_long"] = conversations.num_too_long
    save_model(model, run.folder, tokenizer=tokenizer, card=_card(config, metrics))
    write_json(run.folder / "history.json", dataclasses.asdict(history))
    return metrics


def _conversations(
    path: Path, tokenizer: Tokenizer, model: Model, config: SFTConfig
) -> Conversations:
    from lmworks.training.conversations import Conversations, read_conversations

    if not path.is_file():
        raise UserError(f"{path} is missing: give a dataset made by `lmworks data questions`")
    return Conversations(
        read_conversations(path),
        tokenizer,
        context_length=model.config.max_position_embeddings,
        batch_size=config.batch_size,
        seed=config.seed,
    )


def _heldout(folder: Path, tokenizer: Tokenizer, model: Model, config: SFTConfig) -> list[Batch]:
    """The first held-out conversations in fixed batches; none when the dataset has none."""
    path = folder / "heldout.jsonl"
    if not path.is_file() or not path.stat().st_size:
        return []
    rows = _conversations(path, tokenizer, model, config)
    count, size = min(len(rows), _HELDOUT_ROWS), config.batch_size
    return [rows.collate(range(i, min(i + size, count))) for i in range(0, count, size)]


def _with_replay(
    conversations: Conversations,
    tokenizer: Tokenizer,
    model: Model,
    config: SFTConfig,
    run: Run,
) -> Callable[[int], Batch]:
    """Conversations, with every (1 / replay)-th step taken from the corpus instead."""
    from lmworks.training.pretrain import cached_stream
    from lmworks.training.tokens import PackedWindows

    windows = PackedWindows(
        cached_stream(run.inputs["corpus"] / "train.jsonl", tokenizer, run.work),
        context_length=model.config.max_position_embeddings,
        batch_size=max(1, config.batch_size // 2),
        seed=config.seed,
    )

    def batch(step: int) -> Batch:
        replayed = math.floor(step * config.replay)
        if math.floor((step + 1) * config.replay) > replayed:
            return dataclasses.replace(windows(replayed), source="replay")
        return conversations(step - replayed)

    return batch


def _card(config: SFTConfig, metrics: dict[str, Any]) -> str:
    return (
        f"`{Path(config.model).name}`, fine-tuned for {metrics['num_steps']} steps on "
        f"{metrics['num_conversations']} conversations of `{Path(config.questions).name}`. "
        "Only the answers counted in the loss."
    )

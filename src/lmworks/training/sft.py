"""Stage `sft`: supervised fine-tuning of a model on conversations, loss on the answers only.

With general text (`--corpus`) the model is held to it while it learns, by one of the methods of
`retention`, and what it forgets is measured and can be given a budget.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core import progress
from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage
from lmworks.models.adapters.base import AdapterConfig
from lmworks.training.adapted import ADAPTER_HELP, BASE_TYPE_HELP, BaseType
from lmworks.training.fitting import fit_stage, steps_of
from lmworks.training.mask_config import MaskConfig
from lmworks.training.optimizers.base import OptimizerConfig
from lmworks.training.retention.config import RetentionConfig
from lmworks.training.trainer_config import LoopConfig

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.batches import Batch
    from lmworks.training.callbacks.base import Callback
    from lmworks.training.conversations import Conversations

_GENTLE = LoopConfig(
    warmup_steps=20,
    eval_every=25,
    optimizer=OptimizerConfig(name="adamw", learning_rate=6e-4, weight_decay=0.01),
)
_HELDOUT_ROWS = 256
_SAMPLES = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Teach a model to answer: supervised fine-tuning on conversations.

    Examples:
        lmworks train sft --model runs/base --questions runs/questions --out runs/chat
        lmworks train sft --model runs/base --questions runs/questions --corpus runs/corpus \\
            --replay 0.3 --epochs 2
        lmworks train sft --model smollm2-135m --questions chats.jsonl --packing \\
            --context-length 1024 --set loop.optimizer.learning_rate=2e-5
        lmworks train sft --model smollm2-135m --questions chats.jsonl --corpus runs/general \\
            --retention kl --forgetting-budget 1%
        lmworks train sft --model smollm2-135m --questions chats.jsonl --adapter lora \\
            --base-type packed --set adapter.rank=8
    """

    model: str = option(role=REFERENCE, help="the model to start from")
    questions: str = option(
        role=REFERENCE, help="dataset folder (train.jsonl with messages), or one .jsonl file"
    )
    corpus: str = option("", role=REFERENCE, help="general text that must not be forgotten")
    retention: str = option("replay", help="how it is held: replay, kl, ewc, l2, interpolate, none")
    replay: float = option(0.4, help="share of the steps that replay and kl give to the corpus")
    forgetting_budget: str = option(
        "", help="the most that the loss on held-out general text may rise, as 1%"
    )
    adapter: AdapterConfig | None = option(None, help=ADAPTER_HELP)
    base_type: BaseType = option("float32", help=BASE_TYPE_HELP)
    epochs: float = option(3.0, help="passes over the conversations, unless --num-steps is given")
    num_steps: int = option(0, help="training steps; 0 derives them from --epochs")
    batch_size: int = option(16, help="conversations per step, or packed rows")
    packing: bool = option(False, help="several conversations to a row, each seen by itself")
    context_length: int = option(0, help="tokens of a row at most; 0 takes what the model can")
    too_long: Literal["drop", "keep-start", "keep-end", "refuse"] = option(
        "drop", help="longer conversations"
    )
    seed: int = option(0, help="same seed, same bytes")
    skip_refused: bool = option(
        False, help="leave rows out that can't be learnt from, instead of stopping", flag=False
    )
    masks: MaskConfig = option(MaskConfig(), help="what of a conversation is learnt", flag=False)
    forgetting: RetentionConfig = option(
        RetentionConfig(), help="how the corpus is held and looked at", flag=False
    )
    loop: LoopConfig = option(_GENTLE, help="schedule and optimizer", flag=False)
    checkpoint_every_s: float = option(30.0, role=COSMETIC, help="seconds between checkpoints")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@stage("sft", makes="model", version=2, many_processes=True)
def sft(config: SFTConfig, run: Run) -> dict[str, Any]:
    """Fine-tune on answers; see SFTConfig."""
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.adapted import adapter_figures, load_to_train, save_trained
    from lmworks.training.callbacks.same_data import SameData
    from lmworks.training.callbacks.samples import text_of
    from lmworks.training.retention.hold import check_plan, hold
    from lmworks.training.threads import set_threads

    check_plan(config.loop.parallel, config.retention)
    set_threads(config.threads)
    tokenizer = load_tokenizer(run.inputs["model"])
    model = load_to_train(run.inputs["model"], config.adapter, config.base_type, config.seed)
    length = context_length(config.context_length, model)
    train, heldout = _files(run.inputs["questions"])
    conversations = _conversations(train, tokenizer, length, config)
    held = hold(
        conversations,
        model,
        tokenizer,
        corpus=run.inputs.get("corpus"),
        method=config.retention,
        share=config.replay,
        budget=config.forgetting_budget,
        config=config.forgetting,
        context_length=length,
        batch_size=max(1, config.batch_size // 2),
        seed=config.seed,
        work=run.work,
    )
    fitted = fit_stage(
        model,
        held.objective,
        held.batches,
        config,
        work=run.work,
        label="instruction tuning",
        num_steps=steps_of(config, conversations.batches_per_epoch, elsewhere=held.share),
        heldout=_heldout(heldout, tokenizer, length, config),
        callbacks=[
            SameData({"the conversations": conversations.fingerprint()}),
            *held.callbacks,
            *_samples(heldout or train, tokenizer, config.loop),
        ],
        show=text_of(tokenizer),
    )
    metrics = fitted.metrics
    counts = dataclasses.asdict(conversations.counts)
    metrics |= {name: count for name, count in counts.items() if count} | held.figures()
    if metrics["heldout_loss"] is not None:
        metrics["heldout_perplexity"] = math.exp(min(metrics["heldout_loss"], 700))
    metrics |= adapter_figures(model)
    card = _card(config, metrics)
    save_trained(model, run.folder, base=config.model, tokenizer=tokenizer, card=card)
    fitted.write(run.folder, general=held.looks)
    return metrics


def context_length(wanted: int, model: Model) -> int:
    """Tokens of a row. Raises: UserError for more than the model can read."""
    most = model.config.max_position_embeddings
    if wanted < 0 or wanted > most:
        raise UserError(f"context_length = {wanted}: the model reads 1 to {most} tokens")
    return wanted or most


def _files(path: Path) -> tuple[Path, Path | None]:
    """(training, held-out) of a dataset folder, or of one file, which holds nothing out."""
    if path.is_file():
        return path, None
    train, heldout = path / "train.jsonl", path / "heldout.jsonl"
    if not train.is_file():
        raise UserError(
            f"{train} is missing: give a dataset made by `lmworks data questions`, or a file with "
            'a conversation in each line: {"messages": [...]}'
        )
    return train, heldout if heldout.is_file() and heldout.stat().st_size else None


def _conversations(
    path: Path, tokenizer: Tokenizer, length: int, config: SFTConfig
) -> Conversations:
    from lmworks.training.conversations import Conversations, read_conversations

    found = Conversations(
        read_conversations(path),
        tokenizer,
        context_length=length,
        batch_size=config.batch_size,
        seed=config.seed,
        masks=config.masks,
        packing=config.packing,
        too_long=config.too_long,
        skip_refused=config.skip_refused,
    )
    for line in found.remarks():
        progress.say(f"  {line}")
    if not len(found):
        raise UserError(
            f"{path}: no conversation is left to train on: {'; '.join(found.remarks())}"
        )
    return found


def _heldout(
    path: Path | None, tokenizer: Tokenizer, length: int, config: SFTConfig
) -> list[Batch]:
    """The first held-out conversations in fixed batches; none when the dataset has none."""
    from lmworks.training.conversations import Conversations, read_conversations

    if path is None:
        return []
    rows = Conversations(
        read_conversations(path),
        tokenizer,
        context_length=length,
        batch_size=config.batch_size,
        seed=config.seed,
        masks=config.masks,
        skip_refused=config.skip_refused,
    )
    count, size = min(len(rows), _HELDOUT_ROWS), config.batch_size
    return [rows.collate(range(i, min(i + size, count))) for i in range(0, count, size)]


def _samples(path: Path, tokenizer: Tokenizer, loop: LoopConfig) -> list[Callback]:
    """Answers to the first questions now and then, if they are asked for."""
    import itertools

    from lmworks.training.callbacks.samples import Samples
    from lmworks.training.conversations import read_conversations

    if not loop.sample_every:
        return []
    prompts = []
    for row in itertools.islice(read_conversations(path), _SAMPLES):
        first = next(i for i, m in enumerate(row["messages"]) if m["role"] == "assistant")
        prompts.append(tokenizer.encode_chat(row["messages"][:first], add_generation_prompt=True))
    return [Samples(tokenizer, prompts, every=loop.sample_every)]


def _card(config: SFTConfig, metrics: dict[str, Any]) -> str:
    return (
        f"`{Path(config.model).name}`, fine-tuned for {metrics['num_steps']} steps on "
        f"{metrics['num_conversations']} conversations of `{Path(config.questions).name}`. "
        "Only the answers counted in the loss."
    )

"""Stage `reward`: a model that tells how good an answer is, learnt from pairs of answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.files import read_json, write_json
from lmworks.core.stages import Run, stage
from lmworks.training.fitting import fit_stage, fixed_batches, steps_of
from lmworks.training.optimizers.base import OptimizerConfig
from lmworks.training.trainer_config import LoopConfig

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.preferences.reward_batches import RewardPairs

_CAREFUL = LoopConfig(
    warmup_steps=20,
    eval_every=25,
    schedule="linear",
    optimizer=OptimizerConfig(name="adamw", learning_rate=1e-4, weight_decay=0.01),
)
_HELDOUT_ROWS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Train a reward model: the better of two answers shall get the higher number.

    Rows are `prompt`, `chosen`, `rejected`, as for `train prefer`. With heads the model gives one
    number in each regard, and a row names in fields of those names how much better the chosen
    answer is in it (below zero: worse; 0 or absent: not judged).

    Examples:
        lmworks train reward --model runs/chat --preferences runs/pairs --out runs/judge
        lmworks train reward --model runs/chat --preferences pairs.jsonl --margin
        lmworks train reward --model runs/chat --preferences pairs.jsonl \\
            --heads '[helpful, harmless, honest]'
    """

    model: str = option(role=REFERENCE, help="the model to start from, its head is replaced")
    preferences: str = option(role=REFERENCE, help="folder with train.jsonl, or a .jsonl file")
    heads: list[str] = option([], help="fields that each judge in one regard")
    margin: bool = option(False, help="ask for a difference as large as the row's number says")
    centring: float = option(0.0, help="draw rewards to a mean of zero; 0.01 is usual")
    truncation: Literal["drop", "keep_start", "keep_end"] = option(
        "drop", help="rows that are too long: left out, the answer's end cut, the prompt's start"
    )
    max_length: int = option(0, help="most tokens of a row; 0 takes the model's context")
    as_chat: bool = option(False, help="read plain texts as a user's and an assistant's message")
    skip_bad: bool = option(False, help="leave out and count rows that can't be used")
    heldout: float = option(0.1, help="share to hold out where there is no heldout.jsonl")
    epochs: float = option(1.0, help="passes over the rows, unless --num-steps is given")
    num_steps: int = option(0, help="training steps; 0 derives them from --epochs")
    batch_size: int = option(8, help="pairs per step")
    seed: int = option(0, help="same seed, same bytes")
    loop: LoopConfig = option(_CAREFUL, help="schedule and optimizer", flag=False)
    checkpoint_every_s: float = option(30.0, role=COSMETIC, help="seconds between checkpoints")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@stage("reward", makes="model", many_processes=True)
def reward(config: RewardConfig, run: Run) -> dict[str, Any]:
    """Train a reward model; see RewardConfig."""
    from lmworks.models.load import load_single_model
    from lmworks.models.save import save_model
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.objectives.base import build_objective
    from lmworks.training.threads import set_threads

    set_threads(config.threads)
    tokenizer = load_tokenizer(run.inputs["model"])
    model = reward_model(
        load_single_model(run.inputs["model"]), len(config.heads) or 1, seed=config.seed
    )
    data, heldout, num_bad = _data(config, run.inputs["preferences"], tokenizer, model)
    data.check_heads()
    objective = build_objective("reward", {"centring": config.centring})
    fixed = fixed_batches(heldout)
    fitted = fit_stage(
        model,
        objective,
        data,
        config,
        work=run.work,
        label="reward model",
        num_steps=steps_of(config, data.order.batches_per_epoch),
        heldout=fixed,
    )
    metrics = fitted.metrics | {
        "num_pairs": len(data),
        "num_heldout": len(heldout),
        "num_bad": num_bad,
        "num_too_long": data.fit.num_dropped,
        "num_cut": data.fit.num_cut,
        "num_unjudged": data.num_unjudged,
    }
    metrics |= _accuracies(model, heldout, fixed)
    save_model(model, run.folder, tokenizer=tokenizer, card=_card(config, metrics))
    _name_heads(run.folder, config.heads or ["reward"])
    fitted.write(run.folder)
    return metrics


def reward_model(model: Model, num_heads: int, *, seed: int) -> Model:
    """`model` with rewards for a head, as transformers' classes for sequences have them.

    A decoder's stand on its last token, an encoder's on its first through a square layer.

    Raises: UserError for an encoder-decoder.
    """
    from lmworks.models.config import (
        ClassHeadConfig,
        FirstPooling,
        LastPooling,
        PooledHeadConfig,
        ValueHeadConfig,
    )
    from lmworks.models.new_head import with_head

    if model.config.encoder is not None:
        raise UserError("an encoder-decoder can't become a reward model: give a decoder")
    causal = all(getattr(layer.mixer, "causal", True) for layer in model.config.layers)
    head: PooledHeadConfig = ValueHeadConfig(pooling=LastPooling())
    if not causal:
        head = ClassHeadConfig(num_classes=num_heads, pooling=FirstPooling(), transform="tanh")
    elif num_heads > 1:
        head = ClassHeadConfig(num_classes=num_heads, pooling=LastPooling(), bias=False)
    return with_head(model, head, seed=seed)


def _data(
    config: RewardConfig, place: Path, tokenizer: Tokenizer, model: Model
) -> tuple[RewardPairs, RewardPairs, int]:
    from lmworks.training.preferences.batches import Fit, tell_fit
    from lmworks.training.preferences.reward_batches import RewardPairs
    from lmworks.training.preferences.rows import Pair, as_chat, as_pair
    from lmworks.training.row_files import read_split

    fields = [*config.heads, *(["margin"] if config.margin and not config.heads else [])]

    def make(where: str, row: Mapping[str, Any]) -> list[Pair]:
        pair = as_pair(where, row, fields)
        return [as_chat(pair) if config.as_chat else pair]

    split = read_split(
        place, make, heldout=config.heldout, seed=config.seed, skip_bad=config.skip_bad
    )
    context = model.config.max_position_embeddings

    def data(rows: Sequence[Pair]) -> RewardPairs:
        # The last token is read as well, not only predicted.
        length = min(config.max_length or context, context) - 1
        return RewardPairs(
            rows,
            tokenizer,
            Fit(length=length, truncation=config.truncation),
            batch_size=config.batch_size,
            seed=config.seed,
            heads=config.heads,
            margin=config.margin,
        )

    train = data(split.train)
    tell_fit(train.fit, len(split.train))
    return train, data(split.heldout[:_HELDOUT_ROWS]), split.num_bad


def _accuracies(model: Model, heldout: RewardPairs, fixed: Sequence[Any]) -> dict[str, float]:
    """Share of held-out judgements that the model agrees with, of all and by head."""
    import torch

    from lmworks.training.objectives.reward import rewards

    if not fixed:
        return {}
    device = next(model.parameters()).device
    right, judged = [], []
    model.eval()
    with torch.no_grad():
        for batch in fixed:
            chosen, rejected = rewards(model, batch.to(device)).cpu().chunk(2)
            right.append((batch.better * (chosen - rejected)) > 0)
            judged.append(batch.better != 0)
    hits, counted = torch.cat(right), torch.cat(judged)
    found = {"heldout_accuracy": hits[counted].float().mean().item()}
    for index, name in enumerate(heldout.heads):
        of_head = hits[:, index][counted[:, index]]
        if len(of_head):
            found[f"heldout_accuracy_{name}"] = of_head.float().mean().item()
    return found


def _name_heads(folder: Path, names: Sequence[str]) -> None:
    """Put the heads' names into config.json, where transformers has those of classes."""
    values = read_json(folder / "config.json", "model config")
    values["id2label"] = {str(i): name for i, name in enumerate(names)}
    values["label2id"] = {name: i for i, name in enumerate(names)}
    write_json(folder / "config.json", values)


def _card(config: RewardConfig, metrics: dict[str, Any]) -> str:
    regards = f" in {len(config.heads)} regards ({', '.join(config.heads)})" if config.heads else ""
    text = (
        f"A reward model{regards} from `{Path(config.model).name}`, trained for "
        f"{metrics['num_steps']} steps on {metrics['num_pairs']} pairs of "
        f"`{Path(config.preferences).name}`. A higher number is a better answer; only differences "
        "mean something."
    )
    if "heldout_accuracy" in metrics:
        text += (
            f" On {metrics['num_heldout']} held-out pairs it agrees in "
            f"{metrics['heldout_accuracy']:.1%}."
        )
    return text

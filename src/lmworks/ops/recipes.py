"""Recipes: stages in a row, from one YAML file.

    out: runs/small
    steps:
      corpus:    {stage: build_corpus}
      tokenizer: {stage: train_tokenizer, corpus: "${corpus}", vocab_size: 2048}
      base:      {stage: pretrain, corpus: "${corpus}", tokenizer: "${tokenizer}"}

A step is a stage and its config; `${name}` is the folder of an earlier step. `base: other.yaml`
starts from another recipe and states only the differences. `settings: {folder: ~/notes}` names what
a person would want to change: `${folder}` is its value, and `--set folder=...` another one. Steps
are cached and resumed by the stage mechanism; there is no second one here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lmworks.core import progress
from lmworks.core.config import from_mapping, lay_over, merge, parse_set
from lmworks.core.errors import UserError, unknown_name
from lmworks.core.stages import Artifact, Stage
from lmworks.core.tables import look_up

STAGES: dict[str, str] = {
    "build_corpus": "lmworks.data.corpus:build_corpus",
    "build_parallel": "lmworks.data.parallel:build_parallel",
    "draw_questions": "lmworks.data.questions:draw_questions",
    "draw_preferences": "lmworks.data.preferences:draw_preferences",
    "collect_feedback": "lmworks.serving.feedback.stage:collect_feedback",
    "plant_needles": "lmworks.data.needles:plant_needles",
    "train_tokenizer": "lmworks.tokenizers.train:train_tokenizer",
    "extend_tokenizer": "lmworks.tokenizers.extend:extend_tokenizer",
    "compare_tokenizers": "lmworks.evaluation.compare_tokenizers:compare_tokenizers",
    "transplant": "lmworks.models.transplant.stage:transplant_stage",
    "upcycle": "lmworks.models.upcycle:upcycle_stage",
    "extend_context": "lmworks.models.extend_context:extend_context",
    "transplant_leaderboard": "lmworks.evaluation.transplant_leaderboard:transplant_leaderboard",
    "pretrain": "lmworks.training.pretrain:pretrain",
    "search_architecture": "lmworks.training.architecture_search:search_architecture",
    "adapt": "lmworks.training.adapt:adapt",
    "sft": "lmworks.training.sft:sft",
    "prefer": "lmworks.training.prefer:prefer",
    "reward": "lmworks.training.reward:reward",
    "continual_round": "lmworks.evaluation.continual.round:continual_round",
    "distill": "lmworks.training.distill:distill",
    "embed": "lmworks.training.embed:embed",
    "merge": "lmworks.models.merging.stage:merge",
    "merge_adapter": "lmworks.models.adapters.merge_stage:merge_adapter",
    "prune": "lmworks.compression.pruning.stage:prune_stage",
    "bundle": "lmworks.ops.bundle:bundle",
    "quantize": "lmworks.compression.quantize:quantize",
    "sparsify": "lmworks.compression.sparsify:sparsify",
    "importance": "lmworks.compression.measure_importance:importance",
    "quantize_safetensors": "lmworks.compression.quantize_safetensors:quantize_safetensors",
    "analyze": "lmworks.evaluation.quality_speed:analyze",
    "optimize": "lmworks.evaluation.optimize_serving:optimize",
    "preferences": "lmworks.evaluation.preferences:eval_preferences",
    "speculation": "lmworks.evaluation.speculation:speculation",
    "merge_search": "lmworks.evaluation.merge_search:merge_search",
    "needle": "lmworks.evaluation.needle:needle",
    "fit_ensemble": "lmworks.evaluation.fit_ensemble:fit_ensemble",
    "context": "lmworks.evaluation.context:context",
    "position_perplexity": "lmworks.evaluation.position_perplexity:position_perplexity",
    "compare_seeds": "lmworks.evaluation.seeds:compare_seeds",
    "compare_tuned": "lmworks.evaluation.tuning:compare_tuned",
    "evaluate": "lmworks.evaluation.bits_per_byte:evaluate",
    "length_extrapolation": "lmworks.evaluation.length_extrapolation:length_extrapolation",
    "scaling": "lmworks.evaluation.scaling:scaling",
    "compare_continual": "lmworks.evaluation.continual.compare:compare_continual",
    "compare_curricula": "lmworks.evaluation.curricula:compare_curricula",
    "compare_objectives": "lmworks.evaluation.compare_objectives:compare_objectives",
    "compare_architectures": "lmworks.evaluation.architectures:compare_architectures",
}

_PACKAGED = Path(__file__).with_name("recipes")
_MAX_BASES = 8
_KEYS = ("out", "steps", "base", "settings")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One step, its references to earlier steps already replaced by their folders."""

    name: str
    stage: str
    config: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Steps in order, and the folder that theirs lie in."""

    out: Path
    steps: tuple[Step, ...]

    def folder_of(self, step: Step) -> Path:
        return self.out / step.name


_REFERENCE = re.compile(r"\$\{([^}]*)\}")


class _Lines(yaml.SafeLoader):
    """Remembers the line of every key, for errors."""


def _mapping_with_lines(loader: _Lines, node: yaml.MappingNode) -> dict[str, Any]:
    values: Any = loader.construct_mapping(node, deep=True)
    lines = {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
    return _LinedDict(values, lines)


class _LinedDict(dict[Any, Any]):
    def __init__(self, values: Mapping[str, Any], lines: Mapping[str, int]) -> None:
        super().__init__(values)
        self.lines = dict(lines)


_Lines.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_with_lines)


def load_recipe(name: str, *, sets: Sequence[str] = (), out: str | None = None) -> Recipe:
    """Read a recipe and check every step's config, without running anything.

    Args:
        name: a file, or a recipe that comes with lmworks.
        sets: `step.key=value` changes.
    Raises: UserError naming the file, the line and the nearest known name.
    """
    path = _find(name)
    source = _read(path)
    for text in sets:
        _change(source, text)
    folder = _at_home(out or source.out or f"runs/{path.stem}")
    steps: list[Step] = []
    for step, values in source.steps.items():
        known = source.settings | {s.name: str(folder / s.name) for s in steps}
        steps.append(_step(step, values, known, source.where[step]))
    return Recipe(out=folder, steps=tuple(steps))


def _change(source: _Source, text: str) -> None:
    (step, *path), value = parse_set(text)
    if step in source.settings and not path:
        source.settings[step] = value
        return
    if step not in source.steps:
        raise unknown_name("step", step, [*source.steps, *source.settings])
    if not path:
        raise UserError(f"--set {text!r}: write it as step.key=value")
    if isinstance(source.steps[step], Mapping):
        source.steps[step] = merge(source.steps[step], path, value)


def run_recipe(recipe: Recipe) -> Iterator[Artifact]:
    """Run the steps in order, each artifact as it is finished."""
    for number, step in enumerate(recipe.steps, start=1):
        progress.say(f"[bold]{number}/{len(recipe.steps)} {step.name}[/bold] ({step.stage})")
        stage: Stage[Any] = look_up(STAGES, step.stage, seam="stage")
        yield stage(step.config, recipe.folder_of(step), replace=True)


def _find(name: str) -> Path:
    path = _at_home(name)
    if path.is_file():
        return path
    packaged = _PACKAGED / f"{name}.yaml"
    if packaged.is_file():
        return packaged
    if path.suffix in (".yaml", ".yml"):
        raise UserError(f"recipe {name} not found")
    raise unknown_name("recipe", name, [p.stem for p in _PACKAGED.glob("*.yaml")])


def _at_home(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(f"{name!r} can't be used: nobody's home is known by that name") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source:
    """A recipe's content with that of its bases under it, unchecked."""

    out: str | None
    steps: dict[str, Any]
    settings: dict[str, Any]
    where: dict[str, str]  # by step: the file and line that last had a say in it


def _read(path: Path, depth: int = 0) -> _Source:
    if depth > _MAX_BASES:
        raise UserError(f"{path}: recipes are based on each other in a circle")
    data = _parse(path)
    steps = {str(step): values for step, values in (data.get("steps") or {}).items()}
    where = {step: f"{path.name}, step {step!r}{_line(data.get('steps'), step)}" for step in steps}
    settings = {str(name): value for name, value in (data.get("settings") or {}).items()}
    if "base" in data:
        found = path.parent / str(data["base"])
        under = _read(found if found.is_file() else _find(str(data["base"])), depth + 1)
        return _Source(
            out=data.get("out", under.out),
            steps=under.steps | {s: _over(under.steps.get(s), v) for s, v in steps.items()},
            settings=under.settings | settings,
            where=under.where | where,
        )
    if not steps:
        raise UserError(f"{path}: no steps")
    if both := steps.keys() & settings:
        raise UserError(f"{path}: {min(both)!r} is a step and a setting: give one another name")
    return _Source(out=data.get("out"), steps=steps, settings=settings, where=where)


def _over(under: Any, values: Any) -> Any:
    if values is None:
        return under
    both = isinstance(under, Mapping) and isinstance(values, Mapping)
    return lay_over(under, values) if both else values


def _parse(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Lines)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    # A date or number that looks right and is not is a plain ValueError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{path} is not valid YAML{line}") from error
    if not isinstance(data, dict) or not isinstance(data.get("steps") or {}, dict):
        raise UserError(f"{path}: a recipe is a mapping with `steps`, each with a `stage`")
    for key in map(str, data):
        if key not in _KEYS:
            raise unknown_name(f"key in {path.name}{_line(data, key)}", key, _KEYS)
    if not isinstance(data.get("settings") or {}, dict):
        raise UserError(f"{path}: `settings` is a mapping from names to values")
    if not isinstance(data.get("out", ""), str):
        raise UserError(f"{path}: `out` must name a folder")
    return data


def _step(name: str, values: Any, known: Mapping[str, Any], where: str) -> Step:
    if not re.fullmatch(r"[\w-]+", name):  # it is a folder's name, and `--set` splits at dots
        raise UserError(f"{where}: a step's name is letters, digits, _ and -")
    if not isinstance(values, dict) or not isinstance(values.get("stage"), str):
        raise UserError(f"{where}: a step needs a `stage`; known: {', '.join(STAGES)}")
    settings = {key: value for key, value in values.items() if key != "stage"}

    def value_of(match: re.Match[str]) -> Any:
        if match[1] not in known:
            raise unknown_name(f"earlier step in {where}", match[1], known)
        return known[match[1]]

    def filled(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: filled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [filled(inner) for inner in value]
        if not isinstance(value, str):
            return value
        if whole := _REFERENCE.fullmatch(value):  # a setting keeps its type
            return value_of(whole)
        return _REFERENCE.sub(lambda match: str(value_of(match)), value)

    try:
        stage: Stage[Any] = look_up(STAGES, values["stage"], seam="stage")
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    config = from_mapping(stage.config_type, filled(settings), where=where)
    return Step(name=name, stage=values["stage"], config=config)


def _line(mapping: Any, name: str) -> str:
    lines = getattr(mapping, "lines", {})
    return f" (line {lines[name]})" if name in lines else ""

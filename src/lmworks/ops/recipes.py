"""Recipes: stages in a row, from one YAML file.

    out: runs/small
    steps:
      corpus:    {stage: build_corpus}
      tokenizer: {stage: train_tokenizer, corpus: "${corpus}", vocab_size: 2048}
      base:      {stage: pretrain, corpus: "${corpus}", tokenizer: "${tokenizer}"}

A step is a stage and its config; `${name}` is the folder of an earlier step. `base: other.yaml`
starts from another recipe and states only the differences. Steps are cached and resumed by the
stage mechanism; there is no second one here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lmworks.core import progress
from lmworks.core.config import from_mapping, merge, parse_set
from lmworks.core.errors import UserError, unknown_name
from lmworks.core.stages import Artifact, Stage
from lmworks.core.tables import look_up

STAGES: dict[str, str] = {
    "build_corpus": "lmworks.data.corpus:build_corpus",
    "draw_questions": "lmworks.data.questions:draw_questions",
    "train_tokenizer": "lmworks.tokenizers.train:train_tokenizer",
    "pretrain": "lmworks.training.pretrain:pretrain",
    "sft": "lmworks.training.sft:sft",
    "quantize": "lmworks.compression.quantize:quantize",
    "evaluate": "lmworks.evaluation.bits_per_byte:evaluate",
}

_PACKAGED = Path(__file__).with_name("recipes")
_MAX_BASES = 8


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


class _Lines(yaml.SafeLoader):
    """Remembers the line of every key, for errors."""


def _mapping_with_lines(loader: _Lines, node: yaml.MappingNode) -> dict[str, Any]:
    values: dict[str, Any] = loader.construct_mapping(node, deep=True)
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
    data = _read(path)
    for text in sets:
        keys, value = parse_set(text)
        if keys[0] not in data["steps"]:
            raise unknown_name("step", keys[0], data["steps"])
        data["steps"][keys[0]] = merge(data["steps"][keys[0]], keys[1:], value)
    folder = Path(out or data.get("out") or f"runs/{path.stem}").expanduser()
    steps: list[Step] = []
    for step, values in data["steps"].items():
        where = f"{path.name}, step {step!r}{_line(data['steps'], step)}"
        steps.append(_step(step, values, folder, [s.name for s in steps], where))
    return Recipe(out=folder, steps=tuple(steps))


def run_recipe(recipe: Recipe) -> Iterator[Artifact]:
    """Run the steps in order, each artifact as it is finished."""
    for number, step in enumerate(recipe.steps, start=1):
        progress.say(f"[bold]{number}/{len(recipe.steps)} {step.name}[/bold] ({step.stage})")
        stage: Stage[Any] = look_up(STAGES, step.stage, seam="stage")
        yield stage(step.config, recipe.folder_of(step), replace=True)


def _find(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        return path
    packaged = _PACKAGED / f"{name}.yaml"
    if packaged.is_file():
        return packaged
    if path.suffix in (".yaml", ".yml"):
        raise UserError(f"recipe {name} not found")
    raise unknown_name("recipe", name, [p.stem for p in _PACKAGED.glob("*.yaml")])


def _read(path: Path, depth: int = 0) -> dict[str, Any]:
    """A recipe's content with that of its base under it."""
    if depth > _MAX_BASES:
        raise UserError(f"{path}: recipes are based on each other in a circle")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Lines)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{path} is not valid YAML{line}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("steps", {}), dict):
        raise UserError(f"{path}: a recipe is a mapping with `steps`, each with a `stage`")
    for key in data:
        if key not in ("out", "steps", "base"):
            raise unknown_name(
                f"key in {path.name}{_line(data, key)}", key, ["out", "steps", "base"]
            )
    if "base" not in data:
        if not data.get("steps"):
            raise UserError(f"{path}: no steps")
        return data
    found = path.parent / str(data["base"])
    under = _read(found if found.is_file() else _find(str(data["base"])), depth + 1)
    for step, values in (data.get("steps") or {}).items():
        under["steps"][step] = {**under["steps"].get(step, {}), **(values or {})}
    return under | {key: value for key, value in data.items() if key == "out"}


def _step(name: str, values: Any, folder: Path, earlier: list[str], where: str) -> Step:
    if not isinstance(values, dict) or not isinstance(values.get("stage"), str):
        raise UserError(f"{where}: a step needs a `stage`; known: {', '.join(STAGES)}")
    settings = {key: value for key, value in values.items() if key != "stage"}

    def folder_of(match: re.Match[str]) -> str:
        if match[1] not in earlier:
            raise unknown_name(f"earlier step in {where}", match[1], earlier)
        return str(folder / match[1])

    settings = {
        key: re.sub(r"\$\{([\w-]+)\}", folder_of, value) if isinstance(value, str) else value
        for key, value in settings.items()
    }
    stage: Stage[Any] = look_up(STAGES, values["stage"], seam="stage")
    config = from_mapping(stage.config_type, settings, where=where)
    return Step(name=name, stage=values["stage"], config=config)


def _line(mapping: Mapping[str, Any], name: str) -> str:
    lines = getattr(mapping, "lines", {})
    return f" (line {lines[name]})" if name in lines else ""

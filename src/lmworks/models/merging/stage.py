"""Stage `merge`: a recipe in, a merged model out, tensor by tensor."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError, unknown_name
from lmworks.core.files import write_text
from lmworks.core.progress import say
from lmworks.core.references import resolve
from lmworks.core.stages import Run, stage

if TYPE_CHECKING:
    import torch

    from lmworks.models.merging.plan import Plan
    from lmworks.models.merging.recipe import Recipe

MODEL_FILE = "model.gguf"
_MEGABYTE = 1_000_000
_TYPES = ("float32", "float16", "bfloat16", "float64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Merge models into one, by a recipe in mergekit's YAML or by flags.

    Tensors are made one after the other and written as they are made, so models may be larger than
    the memory. Folders of safetensors and GGUF files go in, also mixed, and come out.

    Examples:
        lmworks model merge recipe.yaml --out runs/merged
        lmworks model merge --merge-method slerp --models '[runs/a, runs/b]' --base-model runs/a \\
            --parameters '{t: 0.3}' --out runs/merged
        lmworks model merge --merge-method linear --models '[a.gguf, b.gguf]' \\
            --weights '[0.7, 0.3]' --out runs/merged-gguf
    """

    merge_method: str = option(help="linear, slerp, ties and so on: see `docs/chapters/merging.md`")
    models: list[Any] = option(
        [], help="what is merged: references, or {model, parameters} as in mergekit's YAML"
    )
    weights: list[float] = option([], help="the weight of each model, in their order")
    slices: list[Any] = option([], help="layers from models, as in mergekit's YAML", flag=False)
    modules: dict[str, Any] = option({}, help="models or slices by module", flag=False)
    base_model: Any = option("", help="what differences are taken from")
    parameters: dict[str, Any] = option({}, help="of the method: a value, a gradient, or by name")
    dtype: str = option("", help="type that inputs are turned into; by default the widest of them")
    out_dtype: str = option("", help="type that is written; by default the one computed in")
    tokenizer_source: str = option("", help="base, or a model with the same tokenizer", flag=False)
    tokenizer: dict[str, Any] = option({}, help="mergekit's newer form of it", flag=False)
    chat_template: str = option("", help="Jinja, instead of the base's", flag=False)
    format: Literal["", "safetensors", "gguf"] = option(
        "", help="what is written; by default GGUF if all models are"
    )
    type: str = option("", help="ggml type of matrices in a GGUF; by default as in the base's file")
    seed: int = option(0, help="of methods that draw masks; same seed, same bytes")
    shard_megabytes: int = option(5000, help="largest file of weights", flag=False)
    inputs: dict[str, str] = option(
        {}, role=REFERENCE, help="found in the recipe; not to be given", flag=False
    )

    def __post_init__(self) -> None:
        found = {str(i): model for i, model in enumerate(self.recipe().models())}
        object.__setattr__(self, "inputs", {key: _reference(ref) for key, ref in found.items()})

    def recipe(self) -> Recipe:
        """The merge that these settings describe. Raises: UserError for one that makes no sense."""
        from lmworks.models.merging.recipe import read_recipe

        return read_recipe(
            self.merge_method,
            models=_weighed(self.models, self.weights),
            slices=self.slices,
            modules=self.modules,
            base_model=self.base_model,
            parameters=self.parameters,
        )


def plan_lines(config: MergeConfig) -> Iterator[str]:
    """What would be made of what, for a dry run."""
    paths = {key: _path(ref) for key, ref in config.inputs.items()}
    plan, gguf = _plan(config, paths)
    total = sum(output.num_bytes for output in plan.outputs)
    largest = max(output.num_bytes for output in plan.outputs)
    for output in plan.outputs[:3]:
        names = ", ".join(f"{Path(i.source.reference).name}:{i.name}" for i in output.models)
        yield f"  {output.name}  {list(output.shape)}  of {names}"
    if len(plan.outputs) > 3:
        yield f"  ... {len(plan.outputs)} tensors in all"
    for note in plan.notes:
        yield f"  note: {note}"
    kind = "before it is quantised" if gguf else "of weights"
    yield f"  {total / _MEGABYTE:.1f} MB {kind}, the largest tensor {largest / _MEGABYTE:.1f} MB"


@stage("merge", makes="model", plan=plan_lines)
def merge(config: MergeConfig, run: Run) -> dict[str, Any]:
    """Plan, make, write; see MergeConfig."""
    from lmworks.models.merging.folder import write_folder
    from lmworks.models.merging.gguf_file import write_gguf_file
    from lmworks.models.merging.tokenizers import check_tokenizers

    paths = {key: run.inputs[f"inputs.{key}"] for key in config.inputs}
    plan, gguf = _plan(config, paths)
    sources = {i.source.reference: i.source for o in plan.outputs for i in o.models}
    sources |= {o.base.source.reference: o.base.source for o in plan.outputs if o.base}
    check_tokenizers(sources, plan.lead)
    for note in plan.notes:
        say(f"  note: {note}")
    if gguf:
        write_gguf_file(
            plan,
            run.folder / MODEL_FILE,
            kind=config.type,
            seed=config.seed,
            chat_template=config.chat_template,
        )
    else:
        write_folder(
            plan,
            run.folder,
            seed=config.seed,
            shard_bytes=config.shard_megabytes * _MEGABYTE,
            chat_template=config.chat_template,
        )
    write_text(run.folder / "README.md", _card(config, plan))
    written = [*run.folder.glob("*.safetensors"), *run.folder.glob("*.gguf")]
    return {
        "tensors": len(plan.outputs),
        "layers": len(plan.layers) if plan.layers is not None else None,
        "largest_tensor_bytes": max(output.num_bytes for output in plan.outputs),
        "bytes": sum(path.stat().st_size for path in written),
        "notes": list(plan.notes),
    }


def _plan(config: MergeConfig, paths: Mapping[str, Path]) -> tuple[Plan, bool]:
    """The plan, and whether a GGUF file is to be written."""
    from lmworks.models.merging.plan import make_plan
    from lmworks.models.merging.sources import GGUFSource, open_source

    recipe = config.recipe()
    sources = {named: open_source(named, paths[str(i)]) for i, named in enumerate(recipe.models())}
    dtype, out_dtype = _dtype(config.dtype, "dtype"), _dtype(config.out_dtype, "out_dtype")
    plan = make_plan(recipe, sources, dtype=dtype, out_dtype=out_dtype)
    _check_tokenizer_keys(config, recipe)
    all_gguf = all(isinstance(source, GGUFSource) for source in sources.values())
    gguf = config.format == "gguf" or (not config.format and all_gguf)
    if config.type and not gguf:
        raise UserError("type is of GGUF files: give format gguf too")
    return plan, gguf


def _check_tokenizer_keys(config: MergeConfig, recipe: Recipe) -> None:
    """Only what leaves every token where it is; tokenizers that differ are refused later."""
    if config.tokenizer_source and config.tokenizer:
        raise UserError("give tokenizer_source or tokenizer, not both")
    for key in config.tokenizer:
        if key != "source":
            raise UserError(
                f"tokenizer.{key} is not supported: put the tokens in with `lmworks "
                "tokenizer extend` and `lmworks model transplant` first"
            )
    wanted = config.tokenizer.get("source") or config.tokenizer_source
    known = ["base", "union", *recipe.models()]
    if wanted and wanted not in known:
        raise unknown_name("tokenizer_source", str(wanted), known)


def _dtype(name: str, where: str) -> torch.dtype | None:
    import torch

    if not name:
        return None
    if name not in _TYPES:
        raise unknown_name(where, name, _TYPES)
    found: torch.dtype = getattr(torch, name)
    return found


def _weighed(models: Sequence[Any], weights: Sequence[float]) -> list[Any]:
    if not weights:
        return list(models)
    if len(weights) != len(models):
        raise UserError(f"{len(weights)} weights for {len(models)} models: give one for each")
    made = []
    for model, weight in zip(models, weights, strict=True):
        entry: dict[str, Any] = {"model": model} if isinstance(model, str) else dict(model)
        made.append(entry | {"parameters": {**(entry.get("parameters") or {}), "weight": weight}})
    return made


def _reference(name: str) -> str:
    """mergekit calls a repository of the hub `org/name`, without the `hf:`."""
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists()
    return f"hf:{name}" if on_hub and not Path(name).parent.is_dir() else name


def _path(reference: str) -> Path:
    path = resolve(reference).path
    if path is None:
        raise UserError(f"{reference} is a remote endpoint, which gives no weights to merge")
    return path


def _card(config: MergeConfig, plan: Plan) -> str:
    names = [Path(name).name for name in plan.recipe.models()]
    base = f" The base is `{Path(plan.recipe.base).name}`." if plan.recipe.base else ""
    return (
        "---\nlibrary_name: transformers\ntags:\n- merge\n---\n\n# Merged model\n\n"
        f"`{config.merge_method}` of {', '.join(f'`{name}`' for name in names)}.{base} "
        "`lmworks.json` holds the whole recipe; it was not trained after that.\n"
    )

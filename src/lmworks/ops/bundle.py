"""Stage `bundle`: a model in, a folder out that a phone or a small computer runs without lmworks.

| target | the model | what runs it |
|---|---|---|
| gguf | one GGUF file | llama.cpp: Linux, Android, iOS, Raspberry Pi |
| onnx | an ONNX graph with its cache as inputs and outputs | ONNX Runtime |
| executorch | a program that holds its cache, float32 | ExecuTorch, with XNNPACK |

The folder holds the model, its tokenizer, settings and a small program. Three things are certain
when it is there: it was made for a memory that it was then held to, the program was run, and it
replayed what the model said, within a stated distance.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import MissingExtra, UserError
from lmworks.core.files import write_json, write_text
from lmworks.core.quantities import parse_bytes
from lmworks.core.stages import Run, stage

if TYPE_CHECKING:
    from lmworks.models.config import ModelConfig
    from lmworks.tokenizers.base import Tokenizer

_FILES = Path(__file__).with_name("bundle_files")
_SHORTEST = 256  # tokens of context that are worth a bundle
_RUNTIME_BYTES = {
    "gguf": 60_000_000,
    "onnx": 110_000_000,
    "executorch": 350_000_000,
}  # program, runtime, work space
_CACHE_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}  # of a number
_EVERYDAY = 4096  # tokens of context, unless more is asked for
_STEPPING = 1024  # where the memory of the whole context is taken at once
_PROMPTS, _PROMPT_TOKENS, _ANSWER_TOKENS = 8, 24, 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """Pack a model for a phone or a small computer: file, settings, tokenizer and a program.

    It is refused unless it fits the memory and says what the model says.

    Examples:
        lmworks compress bundle --model smollm2-135m --memory 300MB --out runs/phone
        lmworks compress bundle --model runs/chat --type Q4_K --memory 512MB --out runs/phone
        lmworks compress bundle --model runs/chat --target onnx --type int4 --out runs/onnx
    """

    model: str = option(role=REFERENCE, help="model folder, GGUF file or reference")
    target: Literal["gguf", "onnx", "executorch"] = option(
        "gguf", help="what runs it: llama.cpp, ONNX Runtime, ExecuTorch"
    )
    type: str = option(
        "", help="of weights: a GGUF type (a GGUF file's own by default), or float32, int8, int4"
    )
    memory: str = option("1GB", help="that the program may take, all in all")
    context_length: int = option(0, help="tokens; 0 takes what fits, 4,096 at most")
    cache_type: Literal["auto", "f16", "q8_0"] = option("auto", help="of llama.cpp's cache")
    prompts: str = option(
        "", role=REFERENCE, help="texts or conversations to replay; Python's documentation if none"
    )
    max_distance: float = option(
        0.15, help="most of the model's tokens in whose place the bundle may say another"
    )
    seed: int = option(0, help="which prompts")
    threads: int = option(2, help="of the program; small machines have 2 to 4 fast ones")


@stage("bundle", makes="model")
def bundle(config: BundleConfig, run: Run) -> dict[str, Any]:
    """Pack, hold to the memory, replay; see BundleConfig."""
    from lmworks.ops.bundle_replay import Runner, replay
    from lmworks.tokenizers.load import load_tokenizer

    memory = parse_bytes(config.memory, "memory")
    _check(config)
    tokenizer = load_tokenizer(run.inputs["model"])
    prompts, answers, model_config = _source_text(config, run, tokenizer)
    path = _PACK[config.target](config, run)
    weights = sum(p.stat().st_size for p in run.folder.glob(f"{path.name}*"))
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    settings = _settings(config, model_config, path, weights, memory, longest)
    write_json(run.folder / "settings.json", settings | _special_tokens(tokenizer))
    _write_files(config, run.folder, tokenizer)
    with Runner(run.folder, memory) as runner:
        found = replay(runner, prompts, answers)
    if found.peak_bytes > memory:
        raise UserError(
            f"the bundle took {found.peak_bytes / 1e6:.0f} MB, more than --memory {config.memory}: "
            f"allow {math.ceil(found.peak_bytes / 1e6 / 10) * 10}MB, or take a smaller --type"
        )
    if found.distance > config.max_distance:
        raise UserError(
            f"the bundle says another token than the model at {found.distance:.1%} of "
            f"{found.num_tokens} places; --max-distance allows {config.max_distance:.1%}: take "
            "weights of more bits"
        )
    metrics = {
        "target": config.target,
        "context_length": settings["context_length"],
        "cache_type": settings["cache_type"],
        "bytes": weights,
        "memory_bytes_estimated": settings["memory_bytes_estimated"],
        **dataclasses.asdict(found),
    }
    write_text(run.folder / "README.md", _card(config, metrics))
    return metrics


def _check(config: BundleConfig) -> None:
    from importlib.util import find_spec

    package, extra = {
        "gguf": ("xllamacpp", "llamacpp"),
        "onnx": ("onnxruntime", "onnx"),
        "executorch": ("executorch", "executorch"),
    }[config.target]
    if not find_spec(package):
        raise MissingExtra(package, extra, f"a bundle for {config.target}, which is run once,")
    if config.target == "executorch" and config.type not in ("", "float32"):
        raise UserError(f"--type {config.type}: an ExecuTorch bundle has float32")
    if config.target == "onnx" and config.type not in ("", "float32", "int8", "int4"):
        raise UserError(f"--type {config.type}: an ONNX bundle has float32, int8 or int4")
    if not 0 <= config.max_distance <= 1:
        raise UserError(f"--max-distance {config.max_distance}: from 0 to 1")


def _source_text(
    config: BundleConfig, run: Run, tokenizer: Tokenizer
) -> tuple[list[list[int]], list[list[int]], ModelConfig]:
    """Prompts, what the model itself says after them, and its settings."""
    from lmworks.inference.engine import Engine
    from lmworks.inference.sampling import Sampling
    from lmworks.models.load import load_language_model

    model = load_language_model(run.inputs["model"], packed=True)
    context = model.config.max_position_embeddings
    if config.context_length > context:
        raise UserError(
            f"--context-length {config.context_length}: the model reads {context} tokens; "
            "`lmworks model extend-context` makes one that reads more"
        )
    most = (config.context_length or context) - _ANSWER_TOKENS
    prompts = [prompt for prompt in _prompts(config, run, tokenizer) if len(prompt) <= most]
    if not prompts:
        raise UserError(
            f"no prompt leaves room for an answer of {_ANSWER_TOKENS} tokens: give shorter ones "
            "with --prompts, or a longer --context-length"
        )
    engine = Engine(model, tokenizer, max_positions=max(map(len, prompts)) + _ANSWER_TOKENS)
    try:
        plain = Sampling(temperature=0, max_tokens=_ANSWER_TOKENS)
        streams = [engine.submit(prompt, plain) for prompt in prompts]
        answers = [[event.token_id for event in stream] for stream in streams]
    finally:
        engine.close()
    ends = engine.eos_token_ids
    # What ends an answer is not compared: runtimes leave it out, or show it.
    answers = [[i for i in answer if i not in ends] for answer in answers]
    kept = [(p, a) for p, a in zip(prompts, answers, strict=True) if a]
    if not kept:
        raise UserError("the model says nothing after the prompts: give others with --prompts")
    return [p for p, _ in kept], [a for _, a in kept], model.config


def _prompts(config: BundleConfig, run: Run, tokenizer: Tokenizer) -> list[list[int]]:
    """What the model is asked: in its own template if it has one, since runtimes round, and what
    that does to a text says little of a conversation."""
    from lmworks.compression.calibration import calibration_rows
    from lmworks.evaluation.speculation import default_prompts

    if not config.prompts and tokenizer.chat_template:
        asked = [prompt["messages"] for prompt in default_prompts()]
        return [tokenizer.encode_chat(messages, add_generation_prompt=True) for messages in asked]
    rows = calibration_rows(
        run.inputs.get("prompts"),
        tokenizer,
        max_tokens=4 * _PROMPTS * _PROMPT_TOKENS,
        length=_PROMPT_TOKENS,
        seed=config.seed,
    )
    return [row.tolist() for row in rows[:_PROMPTS]]


def _pack_gguf(config: BundleConfig, run: Run) -> Path:
    """Copy a GGUF file, or quantise to one."""
    from lmworks.compression.quantize import QuantizeConfig, quantize
    from lmworks.core.gguf import find_gguf

    target = run.folder / "model.gguf"
    given = find_gguf(run.inputs["model"])
    if given is not None and not config.type:
        shutil.copyfile(given, target)
        return target
    kind: Any = config.type or "Q8_0"
    made = quantize(QuantizeConfig(model=str(run.inputs["model"]), type=kind), run.work / "gguf")
    shutil.copyfile(made.path / "model.gguf", target)
    return target


def _pack_onnx(config: BundleConfig, run: Run) -> Path:
    from lmworks.models.load import load_language_model
    from lmworks.models.portable.onnx import export_onnx

    model = load_language_model(run.inputs["model"])
    weights: Any = config.type or "float32"
    length = config.context_length or min(_EVERYDAY, model.config.max_position_embeddings)
    return export_onnx(model, run.folder, length=length, weights=weights)


def _pack_executorch(config: BundleConfig, run: Run) -> Path:
    from lmworks.models.load import load_language_model
    from lmworks.models.portable.executorch import export_executorch

    model = load_language_model(run.inputs["model"])
    # The memory for all of it is taken when the program is loaded.
    length = config.context_length or min(_STEPPING, model.config.max_position_embeddings)
    return export_executorch(model, run.folder, length=length)


_PACK = {"gguf": _pack_gguf, "onnx": _pack_onnx, "executorch": _pack_executorch}


def _settings(
    config: BundleConfig,
    model: ModelConfig,
    path: Path,
    weights: int,
    memory: int,
    longest: int,
) -> dict[str, Any]:
    """What the program is told: the longest context and the best cache that fit.

    Raises: UserError if not even the shortest fits, with what is missing.
    """
    numbers = sum(
        sum(heads * size for heads, size in layer.kept(model).per_position.values())
        for layer in model.layers
    )
    usual = _STEPPING if config.target == "executorch" else _EVERYDAY
    most = min(config.context_length or usual, model.max_position_embeddings)
    least = max(longest, config.context_length or min(_SHORTEST, most))
    left = memory - weights - _RUNTIME_BYTES[config.target]
    kinds = [config.cache_type] if config.cache_type != "auto" else ["f16", "q8_0"]
    if config.target == "onnx":
        # A graph gives back each layer's past as a copy, so that two are there at once.
        kinds, numbers = ["f32"], 2 * numbers
    elif config.target == "executorch":
        kinds = ["f32"]
    for kind in kinds:
        per_token = numbers * _CACHE_BYTES[kind]
        fits = int(left / per_token) if per_token else most
        length = min(most, fits // 64 * 64 if fits < most else most)
        if length >= least:
            return {
                "model": path.name,
                "context_length": length,
                "cache_type": kind,
                "threads": config.threads,
                "batch": 64,
                "memory_bytes_estimated": int(memory - left + length * per_token),
            }
    needed = memory - left + least * numbers * _CACHE_BYTES[kinds[-1]]
    raise UserError(
        f"{weights / 1e6:.0f} MB of weights and {least} tokens of context need about "
        f"{needed / 1e6:.0f} MB, not {config.memory}: allow "
        f"{math.ceil(needed / 1e7) * 10}MB, or take a smaller --type or --context-length"
    )


def _special_tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    from lmworks.inference.engine import end_token_ids

    named = {"bos_token": tokenizer.bos_token_id, "eos_token": tokenizer.eos_token_id}
    by_id = {number: text for text, number in tokenizer.special_tokens.items()}
    return {name: by_id.get(i, "") if i is not None else "" for name, i in named.items()} | {
        "end_token_ids": sorted(end_token_ids(tokenizer))
    }


def _write_files(config: BundleConfig, folder: Path, tokenizer: Tokenizer) -> None:
    gguf = config.target == "gguf"  # its file holds vocabulary and template
    files = {"run.py": "run_gguf.py" if gguf else "run_graph.py"}
    files |= {"run.sh": "run_gguf.sh"} if gguf else {"runtime.py": f"runtime_{config.target}.py"}
    for name, source in files.items():
        write_text(folder / name, (_FILES / source).read_text(encoding="utf-8"))
    if gguf:
        (folder / "run.sh").chmod(0o755)
    else:
        tokenizer.save(folder)


def _card(config: BundleConfig, metrics: dict[str, Any]) -> str:
    text = (_FILES / f"card_{config.target}.md").read_text(encoding="utf-8")
    figures = {
        "NAME": Path(config.model).name,
        "SIZE": f"{metrics['bytes'] / 1e6:.0f} MB",
        "MEMORY": config.memory,
        "PEAK": f"{metrics['peak_bytes'] / 1e6:.0f} MB",
        "CONTEXT": f"{metrics['context_length']:,}",
        "SPEED": f"{metrics['tokens_per_s']:.0f}",
        "DISTANCE": f"{metrics['distance']:.1%}",
        "TOKENS": f"{metrics['num_tokens']:,}",
    }
    for name, figure in figures.items():
        text = text.replace(f"[{name}]", figure)
    return text

"""Stage `merge_into_blocks`: an adapter folded into a GGUF file, type for type, and what was kept.

The merging is `compression/merge_back.py`; here four models are measured on held-out text which
neither the adapter nor the solver saw: the base, the base with its adapter, the file that was
solved for, and the baseline that rounds the sums anew. The share of the gain that is kept is
(base - merged) / (base - adapted), in bits, with an interval over groups of documents.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.files import write_json, write_text
from lmworks.core.stages import Run, stage

if TYPE_CHECKING:
    import numpy as np

    from lmworks.compression.merge_back import Place
    from lmworks.evaluation.scores import Scores
    from lmworks.evaluation.statistics import Interval
    from lmworks.models.adapters.base import Adapter
    from lmworks.models.gguf_weights import GGUFWeights
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer

MODEL_FILE = "model.gguf"
_LONGEST_ROW = 256  # tokens of one calibration text


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeIntoBlocksConfig:
    """Fold an adapter into the blocks of the GGUF file it was trained on, keeping every type.

    Codes and scales are solved for, so that the outputs on calibration text come as near to the
    adapter's as the type allows; everything else in the file stays as it is, to the byte.

    Examples:
        lmworks compress merge-adapter --adapter runs/adapter --calibration runs/questions
        lmworks compress merge-adapter --adapter theirs --base smollm2-135m \\
            --calibration runs/corpus --calibration-tokens 16000 --out runs/merged
    """

    adapter: str = option(role=REFERENCE, help="folder of the adapter")
    base: str = option("", role=REFERENCE, help="its base, if not the one that it names")
    calibration: str = option(
        role=REFERENCE, help="corpus or dataset (train.jsonl to solve on, heldout.jsonl to measure)"
    )
    calibration_tokens: int = option(8000, help="tokens of it to solve on")
    method: str = option("solve", help="solve, or round: plain re-quantisation")
    max_heldout: int = option(200, help="held-out texts to measure on; 0 takes all")
    damping: float = option(
        0.5, help="how much the weights count beside the outputs, for little text more", flag=False
    )
    seed: int = option(0, help="which texts are taken")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


def plan(config: MergeIntoBlocksConfig) -> Iterator[str]:
    """The tensors that would change, for a dry run."""
    from lmworks.core.references import resolve

    folder = resolve(config.adapter).path
    if folder is None:
        raise UserError(f"{config.adapter} is a remote endpoint, which gives no adapter")
    opened = _open(folder, config.base)
    for place in opened.places:
        shape = " x ".join(str(size) for size in place.tensor.shape)
        yield f"  {place.tensor.name}  {place.tensor.type}  {shape}"
    rest = len(opened.weights.tensors) - len(opened.places)
    yield f"{len(opened.places)} tensors would change, {rest} stay as they are"


@stage("merge_into_blocks", makes="model", plan=plan)
def merge_into_blocks(config: MergeIntoBlocksConfig, run: Run) -> dict[str, Any]:
    """Merge, measure, write; see MergeIntoBlocksConfig."""
    from lmworks.compression.merge_back import merge_back, merge_plainly
    from lmworks.models.load import load_language_model
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.threads import set_threads

    if config.method not in ("solve", "round"):
        raise UserError(f"method = {config.method!r}: known are solve and round")
    set_threads(config.threads)
    calibration = _read(run.inputs["calibration"] / "train.jsonl")
    heldout = _drawn(run.inputs["calibration"] / "heldout.jsonl", config)
    opened = _open(run.inputs["adapter"], run.inputs.get("base", config.base))
    model, weights, places = opened.model, opened.weights, opened.places
    wanted = {path: _merged(part) for path, part in opened.adapter.parts.items()}
    tokenizer = load_tokenizer(weights.path)
    rows = token_rows(calibration, tokenizer, config.calibration_tokens, seed=config.seed)

    def score(name: str, model: Model) -> Scores:
        return _kept(run.work / f"{name}.npz", lambda: _score(model, heldout, tokenizer))

    scores = {"adapted": score("adapted", model)}
    with opened.adapter.disabled():
        scores["base"] = score("base", model)
    target = run.folder / MODEL_FILE
    rounded = target if config.method == "round" else run.work / "rounded.gguf"
    outcomes = merge_plainly(weights, places, wanted, rounded)
    if config.method == "solve":
        outcomes = merge_back(
            weights, model, places, wanted, rows, target, work=run.work, damping=config.damping
        )
    del opened, model, wanted  # one model at a time
    for name, path in {"rounded": rounded, "merged": target}.items():
        if name == "merged" and path == rounded:
            scores[name] = scores["rounded"]
        else:
            scores[name] = score(name, load_language_model(path, packed=True))
    write_json(run.folder / "merged.json", [_plain(one) for one in outcomes])
    metrics = _metrics(scores, outcomes, target)
    write_text(run.folder / "README.md", _card(config, metrics))
    return metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Opened:
    model: Model  # packed, with the adapter on it
    adapter: Adapter
    weights: GGUFWeights
    places: list[Place]


def _open(folder: Path, base: str | Path) -> _Opened:
    from lmworks.compression.merge_back import find_places
    from lmworks.models.adapters.base import adapter_of, is_adapter
    from lmworks.models.adapters.files import base_reference
    from lmworks.models.gguf_weights import GGUFWeights
    from lmworks.models.load import load_language_model, open_weights

    if not is_adapter(folder):
        raise UserError(f"{folder} is no adapter: it holds no adapter_config.json")
    base = base or base_reference(folder)
    weights = open_weights(base)
    if not isinstance(weights, GGUFWeights):
        raise UserError(
            f"{base} holds no GGUF file: merge into float32 weights with "
            "`lmworks model merge-adapter`"
        )
    model = load_language_model(folder, base=base, packed=True)
    adapter = adapter_of(model)
    if adapter is None:
        raise UserError(f"{folder} is folded into float32 weights: its base is not packed")
    places = find_places(weights, list(adapter.parts))
    return _Opened(model=model, adapter=adapter, weights=weights, places=places)


def _merged(part: Any) -> Any:
    return lambda: part.merged().weight.detach()


def _plain(one: Any) -> dict[str, Any]:
    """A dataclass for JSON, which knows no NaN and no infinity."""
    values = dataclasses.asdict(one)
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }


Row = Any  # a `Document`, or a conversation as a mapping with `messages`


def _read(path: Path) -> list[Row]:
    """The documents of a corpus, or the conversations of a dataset."""
    from lmworks.data.documents import read_documents
    from lmworks.training.conversations import read_conversations

    if not path.is_file():
        raise UserError(f"{path} is missing: give a corpus or a dataset that a stage made")
    with open(path, encoding="utf-8") as file:
        talks = '"messages"' in file.readline()
    rows: list[Row] = list(read_conversations(path) if talks else read_documents(path))
    if not rows:
        raise UserError(f"{path} is empty, so there is nothing to solve on or to measure")
    return rows


def _drawn(path: Path, config: MergeIntoBlocksConfig) -> list[Row]:
    """`max_heldout` rows of the file, in its order."""
    import numpy as np

    rows = _read(path)
    if config.max_heldout < 0:
        raise UserError(f"max_heldout = {config.max_heldout}: a number from 0 (all) up")
    if not config.max_heldout or config.max_heldout >= len(rows):
        return rows
    random = np.random.default_rng(config.seed)
    picked = random.choice(len(rows), config.max_heldout, replace=False)
    return [rows[index] for index in sorted(picked)]


def token_rows(
    rows: Sequence[Row], tokenizer: Tokenizer, num_tokens: int, *, seed: int
) -> list[np.ndarray]:
    """About `num_tokens` tokens of drawn rows, as the model reads them, cut to 256 each.

    Raises: UserError for a number below 1.
    """
    import numpy as np

    from lmworks.training.tokens import document_separator

    if num_tokens < 1:
        raise UserError(f"calibration_tokens = {num_tokens}: take at least 256")
    taken, count = [], 0
    for index in np.random.default_rng(seed).permutation(len(rows)):
        row = rows[index]
        if isinstance(row, Mapping):
            ids = tokenizer.encode_chat(row["messages"])
        else:
            ids = [document_separator(tokenizer), *tokenizer.encode(row.text)]
        taken.append(np.array(ids[: min(_LONGEST_ROW, num_tokens - count)], dtype=np.int64))
        count += len(taken[-1])
        if count >= num_tokens:
            break
    return taken


def _score(model: Model, rows: Sequence[Row], tokenizer: Tokenizer) -> Scores:
    from lmworks.evaluation.scores import score_answers, score_documents
    from lmworks.inference.logprobs import decoder_logprobs

    score: Any = score_answers if isinstance(rows[0], Mapping) else score_documents
    scores: Scores = score(decoder_logprobs(model), rows, tokenizer)
    return scores


def _kept(path: Path, measure: Callable[[], Scores]) -> Scores:
    """What an earlier run that was stopped has measured, or what is measured now."""
    import numpy as np

    from lmworks.core.files import atomic_save
    from lmworks.evaluation.scores import Scores

    if path.is_file():
        with np.load(path) as held:
            return Scores(**held)
    scores = measure()

    def save(part: Path) -> None:
        with open(part, "wb") as file:
            np.savez(file, **vars(scores))

    atomic_save(path, save)
    return scores


def gain_kept(scores: Mapping[str, Scores], name: str) -> Interval | None:
    """(base - merged) / (base - adapted) in bits; None where the adapter gains nothing."""
    from lmworks.evaluation.statistics import share_of_gain

    base = scores["base"]
    if base.bits.sum() <= scores["adapted"].bits.sum():
        return None
    return share_of_gain(base.bits, scores[name].bits, scores["adapted"].bits, base.groups)


def _metrics(scores: Mapping[str, Scores], outcomes: Any, path: Path) -> dict[str, Any]:
    import numpy as np

    from lmworks.evaluation.statistics import paired_interval

    merged, rounded = scores["merged"], scores["rounded"]
    kept, plain = gain_kept(scores, "merged"), gain_kept(scores, "rounded")
    difference = paired_interval(merged.bits, rounded.bits, merged.num_bytes, merged.groups)
    errors = [one.error for one in outcomes if not np.isnan(one.error)]
    return {
        "bits_per_byte": {name: one.bits_per_byte for name, one in scores.items()},
        "gain_kept": None if kept is None else _plain(kept),
        "gain_kept_rounded": None if plain is None else _plain(plain),
        "bits_per_byte_against_rounded": _plain(difference),
        "output_error": float(np.mean(errors)) if errors else 0.0,
        "codes_changed": float(np.nanmean([one.codes_changed for one in outcomes])),
        "tensors_changed": len(outcomes),
        "types": dict(Counter(one.type for one in outcomes)),
        "bytes": path.stat().st_size,
    }


def _card(config: MergeIntoBlocksConfig, metrics: Mapping[str, Any]) -> str:
    kept, plain = metrics["gain_kept"], metrics["gain_kept_rounded"]
    types = ", ".join(f"{count} {kind}" for kind, count in metrics["types"].items())
    told = "On the held-out text the adapter gains nothing, so there was nothing to keep."
    if kept is not None and plain is not None:
        told = f"Of what the adapter gains on held-out text it keeps {_share(kept)}; "
        told += f"rounding anew keeps {_share(plain)}."
    return (
        f"# {Path(config.adapter).name}, merged into its base\n\n"
        f"`{MODEL_FILE}` is the base's file with the adapter in {metrics['tensors_changed']} of "
        f"its tensors ({types}), in the types they had. {told}\n"
    )


def _share(kept: Mapping[str, Any]) -> str:
    if kept["low"] is None or kept["high"] is None:
        return f"{kept['estimate']:.1%}"
    return f"{kept['estimate']:.1%} ({kept['low']:.1%} to {kept['high']:.1%})"

"""Small models trained side by side: variants times seeds on the same text, then compared.

What the comparisons of architectures, position schemes and curricula, and series over sizes, have
in common: a training from a config, measured once and kept, so that a run that was killed goes on;
and a table of differences, paired by document, beside what the seeds say.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmworks.core.errors import UserError
from lmworks.evaluation.report import GainRow, GainTable
from lmworks.evaluation.statistics import Interval, mean_interval, paired_interval, ratio_interval

if TYPE_CHECKING:
    from lmworks.core.stages import Run
    from lmworks.data.documents import Document
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.history import History
    from lmworks.training.pretrain import PretrainConfig

Measures = dict[str, np.ndarray]  # what is kept of one model, by name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A model of one variant and seed, and how its training went."""

    model: Model
    history: History
    tokens_per_s: float


def train(
    settings: PretrainConfig,
    run: Run,
    tokenizer: Tokenizer,
    *,
    name: str,
    label: str,
    model: Model | None = None,
    looks: bool = True,
) -> Trained:
    """Train one model as `train pretrain` would.

    Args:
        name: of the folder in `run.work` that keeps its checkpoints.
        label: what the progress bar says.
        model: to train in place; None makes the one of the settings.
        looks: whether held-out text is looked at now and then.
    """
    from lmworks.training.pretrain import cached_stream, fit, new_model, text_of

    work = run.work / name
    work.mkdir(exist_ok=True)
    _, windows, num_steps = text_of(settings, run, tokenizer, work=work)
    heldout = cached_stream(run.inputs["corpus"] / "heldout.jsonl", tokenizer, run.work)
    if not looks:
        heldout = heldout[:0]
    if model is None:
        model = new_model(settings, tokenizer.vocab_size)
    started = time.monotonic()
    history = fit(model, windows, heldout, settings, num_steps=num_steps, work=work, label=label)
    seconds = max(time.monotonic() - started, 1e-9)
    return Trained(model=model, history=history, tokens_per_s=history.num_targets / seconds)


def measured_once(run: Run, name: str, measure: Callable[[], Measures]) -> Measures:
    """`measure()`, or what an earlier run kept under that name, which may have slashes."""
    from lmworks.core.files import atomic_open

    safe = name.replace("%", "%25").replace("/", "%2F")  # two names never share a file
    kept = run.work / f"{safe}.npz"
    if kept.is_file():
        with np.load(kept, allow_pickle=False) as found:
            return {key: found[key] for key in found.files}
    measures = measure()
    with atomic_open(kept) as file:
        np.savez(file, **measures)  # type: ignore[arg-type]
    return measures


def check_names(field: str, names: Sequence[str], seeds: int) -> None:
    """Raises: UserError unless every variant is named once and has a seed."""
    if not names or len(set(names)) != len(names):
        raise UserError(f"{field}: name each once, the baseline first")
    if seeds < 1:
        raise UserError(f"seeds = {seeds}: at least one model of each")


def document_table(
    bits: Mapping[str, np.ndarray], documents: Sequence[Document], notes: Mapping[str, str]
) -> GainTable:
    """Bits per byte of each variant and its difference from the first, paired by document.

    Args:
        bits: name -> (seeds, documents with text); the mean over the seeds is compared.
    """
    from lmworks.evaluation.scores import num_bytes

    kept = [document for document in documents if document.text]
    sizes = np.array([num_bytes(document.text) for document in kept])
    groups = np.array([document.group for document in kept], dtype=str)
    means = {name: values.mean(0) for name, values in bits.items()}
    first = next(iter(bits))
    rows = [
        GainRow(
            name=name,
            note=notes.get(name, ""),
            bits_per_byte=ratio_interval(mean, sizes, groups),
            versus_previous=None
            if name == first
            else paired_interval(mean, means[first], sizes, groups),
            previous="" if name == first else first,
        )
        for name, mean in means.items()
    ]
    note = (
        f"{len(kept):,} documents in {len(set(groups)):,} groups, {sizes.sum() / 1e3:,.0f} kB; "
        f"the mean of {len(bits[first])} models each."
    )
    return GainTable(title="Held-out documents", note=note, rows=tuple(rows))


def ratio_over_seeds(bits: np.ndarray, baseline: np.ndarray) -> Interval:
    """All bits over the baseline's of the same seed: the mean over seeds with Student's interval.

    Args:
        bits, baseline: (seeds, documents).
    """
    return mean_interval(bits.sum(1) / baseline.sum(1))

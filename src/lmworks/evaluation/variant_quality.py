"""How good variants of a model are beside it: KL, loss and tasks, each measured once and kept.

The reference is read once; what its head needs is kept (`divergence.remember`) and its layers are
let go, so that memory is that of one variant. What was measured of a variant lies in the work
folder, and a run that was killed goes on behind it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lmworks.core.errors import UserError
from lmworks.evaluation.choices import Choices, answered
from lmworks.evaluation.divergence import Divergences, Remembered, divergences, remember
from lmworks.evaluation.sample_texts import SampleTexts
from lmworks.evaluation.statistics import Interval, paired_interval, ratio_interval
from lmworks.evaluation.variants import measured_once
from lmworks.evaluation.weight_errors import WeightErrors, weight_errors

if TYPE_CHECKING:
    from lmworks.core.stages import Run
    from lmworks.models.model import Model

_LN2 = float(np.log(2))
_SENSITIVITY_TEXTS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
    """One variant, measured.

    Attributes:
        divergences: from the reference, text by text.
        correct: of each task, (Q,) 1.0 where it was answered right.
        errors: of its weights.
    """

    divergences: Divergences
    correct: Mapping[str, np.ndarray]
    errors: WeightErrors


class QualityBench:
    """A reference, texts and tasks, against which variants are measured one after the other.

    Args:
        path: of the reference.
        tasks: by name.
        window: tokens read at once; 0 takes the reference's context.
    """

    def __init__(
        self,
        path: Path,
        run: Run,
        texts: SampleTexts,
        tasks: Mapping[str, Choices],
        *,
        window: int = 0,
    ) -> None:
        self._path, self._run, self._texts, self._tasks = path, run, texts, tasks
        reference = _load(path)
        correct = measured_once(run, "tasks-reference", lambda: self._answers(reference))
        self.correct: dict[str, np.ndarray] = {name: correct[name] for name in tasks}
        self._kept: Remembered = remember(
            reference, texts.rows, run.work / "reference.npy", window=window
        )

    def measure(self, name: str, path: Path, *, cache_type: str = "") -> Quality:
        """A variant's quality, with keys and values held in a cache of a type if one is named.

        Raises: UserError for another vocabulary.
        """
        kept = "-".join(["quality", *filter(None, (name, cache_type))])
        found = measured_once(self._run, kept, lambda: self._measure(path, cache_type))
        fields = {f.name: found[f.name] for f in dataclasses.fields(Divergences)}
        bits, size = found["size"].tolist()
        by_kind = dict(zip(found["kinds"].tolist(), found["errors"].tolist(), strict=True))
        return Quality(
            divergences=Divergences(**fields),
            correct={task: found[f"task.{task}"] for task in self._tasks},
            errors=WeightErrors(by_kind=by_kind, bits_per_weight=bits, file_bytes=int(size)),
        )

    def sensitivities(self) -> dict[str, float]:
        """KL per relative squared error of each kind of matrix, on a few of the texts."""
        found = measured_once(self._run, "sensitivities", self._sensitivities)
        return dict(zip(found["kinds"].tolist(), found["values"].tolist(), strict=True))

    def _sensitivities(self) -> dict[str, np.ndarray]:
        from lmworks.evaluation.noise_sensitivity import sensitivities
        from lmworks.models.load import load_language_model

        model = load_language_model(self._path)
        rows = self._texts.rows[:_SENSITIVITY_TEXTS]
        kept = remember(model, rows, self._run.work / "sensitivity.npy")
        found = sensitivities(model, kept, rows)
        return {
            "kinds": np.array(list(found), dtype=str),
            "values": np.array(list(found.values()), dtype=float),
        }

    def bits_per_byte(self, nats: np.ndarray) -> Interval:
        """Of the texts."""
        return ratio_interval(nats / _LN2, self._texts.num_bytes, self._texts.groups)

    def accuracy(self, task: str, correct: np.ndarray) -> tuple[Interval, Interval]:
        """Of a task, and the difference from the reference's, question by question."""
        groups = self._tasks[task].groups
        ones = np.ones(len(groups))
        return (
            ratio_interval(correct, ones, groups),
            paired_interval(correct, self.correct[task], ones, groups),
        )

    def _measure(self, path: Path, cache_type: str) -> dict[str, np.ndarray]:
        model, groups = _load(path), list(self._texts.groups)
        found = divergences(
            self._kept, model, self._texts.rows, groups=groups, cache_type=cache_type
        )
        errors = _errors(self._path, path)
        tasks = {f"task.{name}": value for name, value in self._answers(model).items()}
        columns = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
        weights = {
            "kinds": np.array(list(errors.by_kind), dtype=str),
            "errors": np.array(list(errors.by_kind.values()), dtype=float),
            "size": np.array([errors.bits_per_weight, errors.file_bytes]),
        }
        return {**columns, **tasks, **weights}

    def _answers(self, model: Model) -> dict[str, np.ndarray]:
        from lmworks.inference.logprobs import decoder_logprobs

        logprobs = decoder_logprobs(model)
        return {name: answered(logprobs, task) for name, task in self._tasks.items()}


def _load(path: Path) -> Model:
    from lmworks.models.load import load_language_model

    return load_language_model(path, packed=True)


def _errors(reference: Path, candidate: Path) -> WeightErrors:
    """Of the weights; sizes alone for a model of another shape."""
    from lmworks.evaluation.weight_errors import file_bytes, num_weights

    try:
        return weight_errors(reference, candidate)
    except UserError:
        size = file_bytes(candidate)
        bits = 8 * size / num_weights(candidate)
        return WeightErrors(by_kind={}, bits_per_weight=bits, file_bytes=size)

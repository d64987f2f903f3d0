"""Stage `fit_ensemble`: models of one vocabulary in, an ensemble out whose weights were chosen.

Every way to combine them on a grid of weights is measured on one half of the texts: what each text
costs. The best of them is written as `ensemble.yaml` and judged on the other half, against each
member alone, so that choosing does not flatter it; halves are of groups of texts that are alike.
Each member reads the texts once; its last states are kept, and from them logits are made slice by
slice, of all members together.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage

if TYPE_CHECKING:
    import numpy as np
    import torch

    from lmworks.evaluation.sample_texts import SampleTexts
    from lmworks.evaluation.statistics import Interval
    from lmworks.models.ensemble_spec import EnsembleSpec
    from lmworks.models.model import Model

_LOGIT_CELLS = 1_000_000  # of each member at once
_MOST_MEMBERS = 4
# Steps of a weight, by the number of members: the grid stays small.
_STEPS = {2: 10, 3: 5, 4: 4}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitEnsembleConfig:
    """Find the weights with which models say most together, and judge that on texts left aside.

    The result is a folder that generates as a model does, wherever one is named.

    Examples:
        lmworks eval ensemble --model runs/one --model runs/two --text runs/corpus --out runs/both
        lmworks chat runs/both
    """

    models: list[str] = option([], role=REFERENCE, help="a member, two to four", repeat="--model")
    text: str = option(
        "", role=REFERENCE, help="corpus, folder, document or .jsonl; none: Python's docstrings"
    )
    max_documents: int = option(60, help="texts, half to choose on, half to judge; 0 takes all")
    seed: int = option(0, help="same seed, same texts and halves")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """What was chosen, and how it did on the other half.

    Attributes:
        bits_per_byte: of the ensemble.
        members: of each member alone.
        gains: of the ensemble less each member, paired; below zero it is better.
    """

    spec: EnsembleSpec
    bits_per_byte: Interval
    members: list[Interval]
    gains: list[Interval]


@stage("fit_ensemble", makes="model")
def fit_ensemble(config: FitEnsembleConfig, run: Run) -> dict[str, Any]:
    """Read, choose, judge, write; see FitEnsembleConfig.

    Raises: UserError for members of other vocabularies, or too few texts for two halves.
    """
    import yaml

    from lmworks.core.files import write_json, write_text
    from lmworks.evaluation.report import plain_values
    from lmworks.evaluation.sample_texts import sample_texts
    from lmworks.inference.ensemble import check_same_vocabulary
    from lmworks.models.ensemble_spec import FILE
    from lmworks.models.load import load_language_model
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.threads import set_threads

    if not 2 <= len(config.models) <= _MOST_MEMBERS:
        raise UserError(f"give --model from 2 to {_MOST_MEMBERS} times, not {len(config.models)}")
    set_threads(config.threads)
    paths = [run.inputs[f"models.{number}"] for number in range(len(config.models))]
    tokenizers = [load_tokenizer(path) for path in paths]
    for other, name in zip(tokenizers[1:], config.models[1:], strict=True):
        check_same_vocabulary(tokenizers[0], other, config.models[0], name)
    texts = sample_texts(
        run.inputs.get("text"), tokenizers[0], max_documents=config.max_documents, seed=config.seed
    )
    models = [load_language_model(path) for path in paths]
    fitted = fit(models, texts, config.models, seed=config.seed)
    references = [_seen_from(run.folder, name) for name in config.models]
    told = {
        "combine": fitted.spec.combine,
        "models": [
            {"model": name, "weight": weight}
            for name, weight in zip(references, fitted.spec.weights, strict=True)
        ],
    }
    write_text(run.folder / FILE, yaml.safe_dump(told, sort_keys=False))
    write_text(run.folder / "README.md", f"# Ensemble\n\n{sentence(fitted, config.models)}\n")
    write_json(run.folder / "report.json", plain_values(fitted))
    return {
        "summary": sentence(fitted, config.models),
        "combine": fitted.spec.combine,
        "weights": [round(weight, 4) for weight in fitted.spec.weights],
        "bits_per_byte": round(fitted.bits_per_byte.estimate, 4),
        "members": [round(member.estimate, 4) for member in fitted.members],
    }


def _seen_from(folder: Path, reference: str) -> str:
    """A path as it is seen from a folder, so that both can be moved together; others as given."""
    path = Path(reference).expanduser()
    return os.path.relpath(path.resolve(), folder.resolve()) if path.exists() else reference


def candidates(names: Sequence[str]) -> list[EnsembleSpec]:
    """The members alone, first, and then every way to combine them on the grid."""
    from lmworks.models.ensemble_spec import EnsembleSpec, Member

    count, steps = len(names), _STEPS[len(names)]
    alone = [tuple(float(i == j) for j in range(count)) for i in range(count)]
    grid = [
        tuple(part / steps for part in parts)
        for parts in itertools.product(range(steps + 1), repeat=count)
        if sum(parts) == steps and max(parts) < steps
    ]
    ways = [("probabilities", w) for w in alone]
    ways += [(combine, w) for combine in ("probabilities", "logprobs") for w in grid]
    return [
        EnsembleSpec(
            models=tuple(Member(model=n, weight=w) for n, w in zip(names, weights, strict=True)),
            combine=combine,
        )
        for combine, weights in ways
    ]


def fit(
    models: Sequence[Model], texts: SampleTexts, names: Sequence[str], *, seed: int = 0
) -> Fitted:
    """Choose on one half of the groups, judge on the other.

    Raises: UserError for fewer than four groups of texts.
    """
    import numpy as np

    from lmworks.evaluation.statistics import paired_interval, ratio_interval

    groups = np.unique(texts.groups)
    if len(groups) < 4:
        raise UserError(f"{len(groups)} groups of texts are too few for two halves: give more text")
    known = candidates(names)
    bits = _bits(models, texts, known)  # (candidates, texts)
    chosen_on = np.random.default_rng(seed).permutation(groups)[: len(groups) // 2]
    first = np.isin(texts.groups, chosen_on)
    best = int(bits[:, first].sum(1).argmin())
    judged, sizes, units = bits[:, ~first], texts.num_bytes[~first], texts.groups[~first]
    count = len(models)
    return Fitted(
        spec=known[best],
        bits_per_byte=ratio_interval(judged[best], sizes, units),
        members=[ratio_interval(judged[i], sizes, units) for i in range(count)],
        gains=[paired_interval(judged[best], judged[i], sizes, units) for i in range(count)],
    )


def _bits(models: Sequence[Model], texts: SampleTexts, known: Sequence[EnsembleSpec]) -> np.ndarray:
    """What each text costs under each candidate, (candidates, texts) bits."""
    import numpy as np
    import torch

    from lmworks.core.progress import track
    from lmworks.inference.logprobs import batches_of, num_inputs, scored_states

    size = min(model.config.vocab_size for model in models)
    window = min(model.config.max_position_embeddings for model in models)
    bits = np.zeros((len(known), len(texts.rows)))
    batches = batches_of(texts.rows, window)
    rows = max(1, _LOGIT_CELLS // size)
    with (
        torch.inference_mode(),
        track("reading", total=sum(map(num_inputs, batches))) as bar,
    ):
        for batch in batches:
            owner = np.concatenate([np.full(end - first, i) for i, _, end, first in batch])
            states = [scored_states(model, texts.rows, batch) for model in models]
            targets = states[0][1]
            for at in range(0, len(targets), rows):
                part = slice(at, at + rows)
                logprobs = [
                    m.logits(h[part])[..., :size].float().log_softmax(-1)
                    for m, (h, _) in zip(models, states)
                ]
                for number, spec in enumerate(known):
                    nats = -_of_targets(logprobs, targets[part], spec)
                    np.add.at(bits[number], owner[part], nats.numpy() / math.log(2))
            bar.advance(num_inputs(batch))
    return bits


def _of_targets(
    logprobs: Sequence[torch.Tensor], targets: torch.Tensor, spec: EnsembleSpec
) -> torch.Tensor:
    """Log-probabilities (M,) that an ensemble gives the targets; those of its members (M, V)."""
    import torch

    from lmworks.models.ensemble import combined

    if spec.combine == "probabilities":  # a mixture needs no other token
        picked = [member.gather(-1, targets[:, None]) for member in logprobs]
        weighed = [
            picked[i] + math.log(weight) for i, weight in enumerate(spec.weights) if weight > 0
        ]
        return torch.stack(weighed).logsumexp(0)[:, 0].double()
    scores = combined(logprobs, spec)
    return (scores.gather(-1, targets[:, None])[:, 0] - scores.logsumexp(-1)).double()


def sentence(fitted: Fitted, names: Sequence[str]) -> str:
    """What was chosen, and what it gains over the best member."""
    best = min(range(len(names)), key=lambda i: fitted.members[i].estimate)
    gain, weights = fitted.gains[best], fitted.spec.weights
    told = ", ".join(f"{Path(n).name} {w:.2g}" for n, w in zip(names, weights, strict=True))
    word = "no better" if gain.high >= 0 else "better"
    return (
        f"{fitted.spec.combine} of {told}: {fitted.bits_per_byte.estimate:.4f} bits per byte on "
        f"texts left aside, {word} than {Path(names[best]).name} alone "
        f"({gain.estimate:+.4f}, {gain.low:+.4f} to {gain.high:+.4f})."
    )

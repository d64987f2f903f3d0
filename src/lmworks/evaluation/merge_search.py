"""Stage `merge_search`: models and held-out texts in, the recipe of their best merge out.

Texts are split in two by groups. On the first half candidates compete: what people try by hand,
then random methods and weights, in rounds of successive halving (each round keeps the better half
and doubles the texts), then variations of the best. The second half is read once, at the end, by
the winner, the models that went in, an even mean, and SLERP t = 0.3 where two models meet: its
figures are those of a merge that was not chosen on them. How much the first half flattered is said.

Figures are bits per byte; of several kinds of text each counts as a share of what the first model
needs there, so that no kind outweighs another. Source of the halving: Jamieson and Talwalkar 2016,
arXiv 1502.07943. Left out: CMA-ES, which needs more merges than a laptop makes in an hour.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError, unknown_name
from lmworks.core.files import write_json, write_text
from lmworks.core.progress import say
from lmworks.core.stages import Run, stage

if TYPE_CHECKING:
    import numpy as np

    from lmworks.evaluation.merge_candidates import Candidate
    from lmworks.evaluation.scores import Scores
    from lmworks.evaluation.statistics import Interval
    from lmworks.models.model import Model

RECIPE = "recipe.yaml"
_FEWEST = 8  # texts of a kind in each half
Texts = Mapping[str, Sequence[Any]]  # by kind: documents or conversations


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeSearchConfig:
    """Find how to merge models so that held-out text is told best; writes the recipe.

    Examples:
        lmworks eval merge-search --models '[runs/law, runs/chat]' --base smollm2-135m \\
            --corpora '{law: runs/law-corpus, general: runs/wiki}' --out runs/search
        lmworks model merge runs/search/recipe.yaml --out runs/merged
    """

    models: list[str] = option(role=REFERENCE, help="what is merged, two or more")
    base: str = option("", role=REFERENCE, help="what they were tuned from, for task vectors")
    corpora: dict[str, str] = option({}, role=REFERENCE, help="by name: corpora (heldout.jsonl)")
    questions: dict[str, str] = option({}, role=REFERENCE, help="by name: datasets (heldout.jsonl)")
    methods: list[str] = option([], help="which are drawn from; by default all that fit")
    trials: int = option(24, help="merges in the first round of the search")
    variations: int = option(8, help="merges near the best at its end")
    max_documents: int = option(0, help="texts of each kind, for both halves; 0 takes all")
    window: int = option(0, help="tokens read at once; 0 takes the model's context")
    seed: int = option(0, help="same seed, same recipe")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The chosen merge against another model on the half that was not searched, bits per byte."""

    other: str
    kind: str
    difference: Interval


@stage("merge_search", makes="report")
def merge_search(config: MergeSearchConfig, run: Run) -> dict[str, Any]:
    """Search, measure once more, report; see MergeSearchConfig."""
    import yaml

    from lmworks.evaluation.report import Report, plain_values, write_report
    from lmworks.evaluation.report_parts import versions
    from lmworks.training.threads import set_threads

    if len(config.models) < 2:
        raise UserError("a merge takes two models or more: --models '[runs/a, runs/b]'")
    set_threads(config.threads)
    searched, kept = _halves(_texts(config, run), config.seed)
    lab = _Lab(config, run, searched, kept)
    best = lab.search()
    comparisons, scores = lab.compare(best)
    flattered = lab.value(best) - lab.value_of(scores[_BEST], scores[lab.names[0]])
    recipe = best.recipe(config.models, config.base)
    write_text(run.folder / RECIPE, yaml.safe_dump(recipe, sort_keys=False))
    write_json(
        run.folder / "search.json",
        {
            "best": recipe,
            "tried": [{"recipe": name, "value": value} for name, value in lab.tried()],
            "comparisons": plain_values(comparisons),
            "flattered": flattered,
        },
    )
    summary = f"Best of {len(lab.tried())}: {best.name}. " + "; ".join(
        _sentence(one) for one in comparisons if one.other not in lab.names[1:]
    )
    write_report(
        run.folder,
        Report(
            title="How these models are merged best",
            summary=summary,
            gains=tuple(_table(kind, scores, comparisons, config.seed) for kind in kept),
            versions=versions(),
        ),
    )
    figures = {
        f"against {one.other}, {one.kind}": [
            round(one.difference.estimate, 4),
            round(one.difference.low, 4),
            round(one.difference.high, 4),
        ]
        for one in comparisons
    }
    return {
        "best": best.name,
        "merges": len(lab.tried()),
        "flattered": round(flattered, 4),
        **figures,
    }


_BEST, _EVEN, _SLERP = "the best merge", "an even mean", "SLERP t = 0.3"


class _Lab:
    """Makes merges and keeps what each of them scored."""

    def __init__(self, config: MergeSearchConfig, run: Run, searched: Texts, kept: Texts) -> None:
        from lmworks.evaluation.merge_candidates import METHODS, WITH_BASE
        from lmworks.evaluation.quality_speed import variant_name
        from lmworks.models.merging.sources import open_source
        from lmworks.models.merging.tokenizers import check_tokenizers
        from lmworks.tokenizers.load import load_tokenizer

        self.config, self.run, self.searched, self.kept = config, run, searched, kept
        self.paths = {
            ref: run.inputs[f"models.{number}"] for number, ref in enumerate(config.models)
        }
        if config.base:
            self.paths[config.base] = run.inputs["base"]
        self.sources = {ref: open_source(ref, path) for ref, path in self.paths.items()}
        lead = self.sources[config.models[0]]
        check_tokenizers(self.sources, lead)
        self.tokenizer = load_tokenizer(lead.path)
        self.names: list[str] = []
        for ref in config.models:
            self.names.append(variant_name(Path(ref), self.names))
        for name in config.methods:
            if name not in METHODS:
                raise unknown_name("merge method to search", name, METHODS)
        fitting = [name for name in METHODS if config.base or name not in WITH_BASE]
        if len(config.models) != 2:
            fitting.remove("slerp")
        self.methods = [name for name in fitting if not config.methods or name in config.methods]
        if not self.methods:
            raise UserError("none of these methods fits: most need --base, slerp two models")
        self._values: dict[Candidate, float] = {}

    def search(self) -> Candidate:
        """Rounds of halving, then variations of the best."""
        import numpy as np

        from lmworks.evaluation.merge_candidates import drawn, known, varied

        random = np.random.default_rng(self.config.seed)
        count = len(self.config.models)
        tries = [one for one in known(count, bool(self.config.base)) if one.method in self.methods]
        while len(tries) < self.config.trials:
            tries.append(drawn(self.methods, count, random))
        rounds = max(0, (len(tries) - 1).bit_length() - 1)
        for number in range(min(rounds, 2), 0, -1):
            values = {one: self._on_part(one, 1 / 2**number) for one in tries}
            tries = sorted(tries, key=values.__getitem__)[: max(2, len(tries) // 2)]
            say(f"  {len(tries)} merges are left, the best of them {tries[0].name}")
        best = min(tries, key=self.value)
        for _ in range(self.config.variations):
            best = min((best, varied(best, random)), key=self.value)
        return best

    def tried(self) -> list[tuple[str, float]]:
        """Merges that were scored on the whole half, the best first."""
        return sorted(
            ((one.name, value) for one, value in self._values.items()), key=lambda p: p[1]
        )

    def value(self, one: Candidate) -> float:
        """Bits of a merge on the searched half, as a share of the first model's; less is better."""
        if one not in self._values:
            scores = self._scored(repr(one), lambda: self._made(one), "searched", 1.0)
            self._values[one] = self.value_of(scores, self._of_first(1.0))
        return self._values[one]

    def value_of(self, scores: Mapping[str, Scores], first: Mapping[str, Scores]) -> float:
        """Mean over kinds of bits per byte over the first model's."""
        shares = [scores[kind].bits_per_byte / first[kind].bits_per_byte for kind in scores]
        return sum(shares) / len(shares)

    def compare(self, best: Candidate) -> tuple[list[Comparison], dict[str, dict[str, Scores]]]:
        """The winner, once, against the models, an even mean and SLERP on the second half."""
        from lmworks.evaluation.merge_candidates import Candidate
        from lmworks.evaluation.statistics import paired_interval

        count = len(self.config.models)
        merges = {_BEST: best, _EVEN: Candidate("linear", weights=(1 / count,) * count)}
        if count == 2:
            merges[_SLERP] = Candidate("slerp", shared=(("t", 0.3),))
        scores = {
            name: self._scored(repr(one), lambda one=one: self._made(one), "kept", 1.0)  # type: ignore[misc]
            for name, one in merges.items()
        }
        for ref, name in zip(self.config.models, self.names, strict=True):
            scores[name] = self._scored(ref, lambda ref=ref: self._loaded(ref), "kept", 1.0)  # type: ignore[misc]
        comparisons = []
        for other, kinds in scores.items():
            if other == _BEST or merges.get(other) == best:
                continue
            for kind, theirs in kinds.items():
                mine = scores[_BEST][kind]
                difference = paired_interval(
                    mine.bits, theirs.bits, mine.num_bytes, mine.groups, seed=self.config.seed
                )
                comparisons.append(Comparison(other=other, kind=kind, difference=difference))
        return comparisons, scores

    def _on_part(self, one: Candidate, share: float) -> float:
        scores = self._scored(repr(one), lambda: self._made(one), "searched", share)
        return self.value_of(scores, self._of_first(share))

    def _of_first(self, share: float) -> dict[str, Scores]:
        ref = self.config.models[0]
        return self._scored(ref, lambda: self._loaded(ref), "searched", share)

    def _made(self, one: Candidate) -> Model:
        from lmworks.core.config import from_mapping
        from lmworks.models.merging.in_memory import merged_model
        from lmworks.models.merging.plan import make_plan
        from lmworks.models.merging.stage import MergeConfig

        values = one.recipe(self.config.models, self.config.base)
        recipe = from_mapping(MergeConfig, values, where=one.name).recipe()
        named = {ref: self.sources[ref] for ref in recipe.models()}
        return merged_model(make_plan(recipe, named))

    def _loaded(self, ref: str) -> Model:
        from lmworks.models.load import load_language_model

        return load_language_model(self.paths[ref])

    def _scored(self, name: str, make: Any, half: str, share: float) -> dict[str, Scores]:
        """Scores by kind; kept on disk, so that a search that was stopped goes on."""
        from lmworks.evaluation.scores import Scores, score_answers, score_documents
        from lmworks.evaluation.variants import measured_once
        from lmworks.inference.logprobs import decoder_logprobs

        texts = self.searched if half == "searched" else self.kept

        def measure() -> dict[str, np.ndarray]:
            logprobs = decoder_logprobs(make(), window=self.config.window)
            columns = {}
            for number, (kind, rows) in enumerate(texts.items()):
                part = rows[: max(1, round(len(rows) * share))]
                score = score_answers if kind in self.config.questions else score_documents
                for column, values in vars(score(logprobs, part, self.tokenizer)).items():
                    columns[f"{number}.{column}"] = values
            return columns

        key = hashlib.sha256(f"{name} {half} {share}".encode()).hexdigest()[:24]
        found = measured_once(self.run, key, measure)
        names = [field.name for field in dataclasses.fields(Scores)]
        return {
            kind: Scores(**{column: found[f"{number}.{column}"] for column in names})
            for number, kind in enumerate(texts)
        }


def _texts(config: MergeSearchConfig, run: Run) -> Texts:
    """Held-out texts by kind. Raises: UserError when there are none, or a name is there twice."""
    from lmworks.evaluation.bits_per_byte import read_heldout
    from lmworks.training.conversations import read_conversations

    if not config.corpora and not config.questions:
        raise UserError("nothing to search on: give --corpora or --questions '{name: folder}'")
    if both := config.corpora.keys() & config.questions.keys():
        raise UserError(f"{', '.join(sorted(both))}: a corpus and a dataset have one name")
    found: dict[str, Sequence[Any]] = {}
    for name in config.corpora:
        folder = run.inputs[f"corpora.{name}"]
        documents = read_heldout(folder, config.max_documents, seed=config.seed)
        found[name] = [document for document in documents if document.text]
    for name in config.questions:
        path = run.inputs[f"questions.{name}"]
        rows = list(read_conversations(path if path.is_file() else path / "heldout.jsonl"))
        found[name] = rows[: config.max_documents or None]
    return found


def _halves(texts: Texts, seed: int) -> tuple[Texts, Texts]:
    """Two halves of each kind; texts of one group stay together, and in a drawn order.

    Raises: UserError for too few texts to tell anything.
    """
    import numpy as np

    first: dict[str, Sequence[Any]] = {}
    second: dict[str, Sequence[Any]] = {}
    for kind, rows in texts.items():
        groups = [_group(row, number) for number, row in enumerate(rows)]
        names = sorted(set(groups))
        order = np.random.default_rng(seed).permutation(len(names))
        place = {names[index]: rank for rank, index in enumerate(order)}
        ranked = sorted(range(len(rows)), key=lambda index: (place[groups[index]], index))
        first[kind] = [rows[i] for i in ranked if place[groups[i]] % 2 == 0]
        second[kind] = [rows[i] for i in ranked if place[groups[i]] % 2]
        if min(len(first[kind]), len(second[kind])) < _FEWEST:
            raise UserError(
                f"{kind}: {len(rows)} held-out texts in {len(names)} groups: a search needs "
                f"{_FEWEST} in each half"
            )
    return first, second


def _group(row: Any, number: int) -> str:
    if isinstance(row, Mapping):
        return str(row.get("document") or row.get("id") or number)
    return str(row.group)


def _sentence(one: Comparison) -> str:
    interval = one.difference
    if not interval.excludes_zero:
        return f"{one.kind}: no difference shown to {one.other}"
    word = "fewer" if interval.estimate < 0 else "more"
    ends = sorted((abs(interval.low), abs(interval.high)))
    return (
        f"{one.kind}: {abs(interval.estimate):.3f} bits per byte {word} than {one.other} "
        f"({ends[0]:.3f} to {ends[1]:.3f})"
    )


def _table(
    kind: str,
    scores: Mapping[str, Mapping[str, Scores]],
    comparisons: Sequence[Comparison],
    seed: int,
) -> Any:
    from lmworks.evaluation.report import GainRow, GainTable
    from lmworks.evaluation.statistics import Interval, ratio_interval

    found = {one.other: one.difference for one in comparisons if one.kind == kind}
    rows = []
    for name, kinds in scores.items():
        mine = kinds[kind]
        gap = found.get(name)
        # The table tells what a row gained over another: here, each over the chosen merge.
        turned = None if gap is None else Interval(-gap.estimate, -gap.high, -gap.low)
        rows.append(
            GainRow(
                name=name,
                bits_per_byte=ratio_interval(mine.bits, mine.num_bytes, mine.groups, seed=seed),
                versus_previous=turned,
                previous="" if turned is None else _BEST,
            )
        )
    size = scores[_BEST][kind]
    note = f"{len(size.bits):,} texts that the search did not see, {size.num_bytes.sum():,} bytes."
    return GainTable(title=kind, note=note, rows=tuple(rows))

"""Stage `compare_architectures`: patterns of layers, trained side by side on the same text.

Every pattern is trained from the same seeds on the same batches and measured on the same held-out
documents. Patterns are given the depth at which a token costs nearest to what it costs in the
first one, the baseline; what it does cost is in the table. Differences are paired by document, the
mean over the seeds; beside them stands how far the seeds lie apart.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.files import read_json
from lmworks.core.stages import Run, stage
from lmworks.training.pretrain import PretrainConfig, Shape
from lmworks.training.trainer_config import LoopConfig

if TYPE_CHECKING:
    from lmworks.data.documents import Document
    from lmworks.evaluation.report import GainTable
    from lmworks.evaluation.variants import Measures
    from lmworks.models.compute import Compute
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer

_DEEPEST = 4  # times the baseline's depth


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareArchitecturesConfig:
    """Patterns of layers trained side by side at the same compute, with intervals.

    Examples:
        lmworks eval architectures --corpus runs/corpus --tokenizer runs/tokenizer \\
            --patterns '[attention, window, "window*3,attention"]' --out runs/architectures
        lmworks eval architectures --corpus runs/corpus --tokenizer runs/tokenizer \\
            --patterns '[attention, "attention+moe"]' --seeds 5 --num-steps 600
    """

    corpus: str = option(role=REFERENCE, help="corpus folder (train.jsonl, heldout.jsonl)")
    tokenizer: str = option(role=REFERENCE, help="tokenizer folder or reference")
    patterns: list[str] = option(["attention", "window"], help="the first is the baseline")
    search: str = option("", role=REFERENCE, help="add what `train search` found, and drew")
    depth: int = option(4, help="layers of the baseline; width is 64 x depth")
    same: Literal["compute", "depth"] = option(
        "compute", help="what patterns share: operations per token, or the number of layers"
    )
    context_length: int = option(256, help="tokens a model can look back")
    num_steps: int = option(300, help="training steps of each model")
    batch_size: int = option(8, help="rows of context_length tokens per step")
    seeds: int = option(3, help="models of each pattern")
    max_documents: int = option(200, help="held-out documents to measure; 0 takes all")
    shape: Shape = option(Shape(), help="sizes that override the dial", flag=False)
    loop: LoopConfig = option(LoopConfig(), help="schedule and optimizer", flag=False)
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@stage("compare_architectures", makes="report")
def compare_architectures(config: CompareArchitecturesConfig, run: Run) -> dict[str, Any]:
    """Train all, measure all; see CompareArchitecturesConfig."""
    from lmworks.core.files import write_json
    from lmworks.evaluation.bits_per_byte import read_heldout
    from lmworks.evaluation.report import Report, write_report
    from lmworks.evaluation.report_parts import versions
    from lmworks.evaluation.variants import measured_once
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.threads import set_threads

    if "search" in run.inputs:
        config = with_search(config, run.inputs["search"])
    _check(config)
    threads = set_threads(config.threads)
    tokenizer = load_tokenizer(run.inputs["tokenizer"])
    depths = {pattern: _depth(pattern, config, tokenizer.vocab_size) for pattern in config.patterns}
    documents = read_heldout(run.inputs["corpus"], config.max_documents, seed=0)
    trained = {
        pattern: [
            measured_once(
                run,
                f"{number}-{seed}",
                lambda p=pattern, n=number, s=seed: _train(  # type: ignore[misc]
                    p, depths[p], s, config, run, tokenizer, documents, name=f"{n}-{s}"
                ),
            )
            for seed in range(config.seeds)
        ]
        for number, pattern in enumerate(config.patterns)
    }
    costs = {p: _compute(p, depths[p], config, tokenizer.vocab_size) for p in config.patterns}
    table = _table(config, trained, depths, costs, documents)
    rows = _rows(config, trained, depths, costs, table)
    write_json(run.folder / "architectures.json", {"threads": threads, "rows": rows})
    write_report(
        run.folder,
        Report(
            title="Architectures side by side",
            summary=_summary(rows),
            gains=(table,),
            versions=versions(),
        ),
    )
    return {"summary": _summary(rows), "rows": rows}


def with_search(config: CompareArchitecturesConfig, folder: Path) -> CompareArchitecturesConfig:
    """The best patterns of a search, and those it drew at random, after the others.

    Raises: UserError for a folder that no search made.
    """
    found = read_json(folder / "search.json", "result of a search")
    try:
        more = [row["pattern"] for kind in ("best", "random") for row in found[kind]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder} holds no result of `lmworks train search`") from error
    patterns = list(dict.fromkeys([*config.patterns, *more]))
    return dataclasses.replace(config, patterns=patterns)


def _check(config: CompareArchitecturesConfig) -> None:
    from lmworks.evaluation.variants import check_names
    from lmworks.models.config.patterns import words_of

    for pattern in config.patterns:
        words_of(pattern)
    check_names("patterns", config.patterns, config.seeds)


def _pretrain_config(
    pattern: str, depth: int, seed: int, config: CompareArchitecturesConfig
) -> PretrainConfig:
    """The settings of one training; the width is the baseline's at every depth."""
    from lmworks.models.config.patterns import HEAD_DIM

    hidden = config.shape.hidden_size or HEAD_DIM * config.depth
    return PretrainConfig(
        corpus=config.corpus,
        tokenizer=config.tokenizer,
        depth=depth,
        layers=pattern,
        context_length=config.context_length,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        seed=seed,
        shape=dataclasses.replace(config.shape, hidden_size=hidden),
        loop=config.loop,
    )


def _compute(
    pattern: str, depth: int, config: CompareArchitecturesConfig, vocab_size: int
) -> Compute:
    from lmworks.models.compute import compute
    from lmworks.training.pretrain import model_config

    return compute(model_config(_pretrain_config(pattern, depth, 0, config), vocab_size))


def _depth(pattern: str, config: CompareArchitecturesConfig, vocab_size: int) -> int:
    """The depth at which a token of `pattern` costs nearest to one of the baseline."""
    if config.same == "depth" or pattern == config.patterns[0]:
        return config.depth
    wanted = _compute(config.patterns[0], config.depth, config, vocab_size).forward_flops

    def distance(depth: int) -> float:
        return abs(math.log(_compute(pattern, depth, config, vocab_size).forward_flops / wanted))

    return min(range(1, _DEEPEST * config.depth + 1), key=distance)


def _train(
    pattern: str,
    depth: int,
    seed: int,
    config: CompareArchitecturesConfig,
    run: Run,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    *,
    name: str,
) -> Measures:
    """One model, trained and measured: its bits (documents,), and its speeds."""
    import numpy as np

    from lmworks.evaluation.scores import score_documents
    from lmworks.evaluation.variants import train
    from lmworks.inference.logprobs import decoder_logprobs

    settings = _pretrain_config(pattern, depth, seed, config)
    trained = train(settings, run, tokenizer, name=name, label=f"{pattern}, seed {seed}")
    return {
        "bits": score_documents(decoder_logprobs(trained.model), documents, tokenizer).bits,
        "tokens_per_s": np.array(trained.tokens_per_s),
        "decode_ms": np.array(_decode_ms(trained.model)),
    }


def _decode_ms(model: Model, num_tokens: int = 32) -> float:
    """Milliseconds per token of one stream, from an empty cache."""
    from lmworks.compression.measure import decode

    decode(model, 4)  # kernels are loaded and pages mapped before the clock runs
    return 1000 * decode(model, num_tokens) / num_tokens


def _table(
    config: CompareArchitecturesConfig,
    trained: dict[str, list[Measures]],
    depths: dict[str, int],
    costs: dict[str, Compute],
    documents: Sequence[Document],
) -> GainTable:
    import numpy as np

    from lmworks.evaluation.variants import document_table

    first = costs[config.patterns[0]].forward_flops
    notes = {
        pattern: f"{depths[pattern]} layers, {cost.num_parameters / 1e6:.2f} M parameters, "
        f"{cost.forward_flops / first:.2f} x the operations"
        for pattern, cost in costs.items()
    }
    bits = {p: np.stack([each["bits"] for each in models]) for p, models in trained.items()}
    return document_table(bits, documents, notes)


def _rows(
    config: CompareArchitecturesConfig,
    trained: dict[str, list[Measures]],
    depths: dict[str, int],
    costs: dict[str, Compute],
    table: GainTable,
) -> list[dict[str, Any]]:
    """The table as plain values, with what a model of each pattern costs."""
    from statistics import median

    import numpy as np

    from lmworks.evaluation.report import verdict
    from lmworks.evaluation.variants import ratio_over_seeds

    bits = {p: np.stack([each["bits"] for each in models]) for p, models in trained.items()}
    rows = []
    for row in table.rows:
        models, cost = trained[row.name], costs[row.name]
        over_seeds = ratio_over_seeds(bits[row.name], bits[config.patterns[0]])
        rows.append(
            {
                "pattern": row.name,
                "layers": depths[row.name],
                "parameters": cost.num_parameters,
                "forward_flops_per_token": cost.forward_flops,
                "flops_ratio": cost.forward_flops / costs[config.patterns[0]].forward_flops,
                "bits_per_byte": dataclasses.asdict(row.bits_per_byte),
                "difference": row.versus_previous and dataclasses.asdict(row.versus_previous),
                "verdict": verdict(row.versus_previous) if row.versus_previous else "baseline",
                "bits_ratio_over_seeds": dataclasses.asdict(over_seeds),
                "training_tokens_per_s": median(float(m["tokens_per_s"]) for m in models),
                "decode_ms_per_token": median(float(m["decode_ms"]) for m in models),
                "cache_bytes_per_token": cost.cache_bytes_per_token,
                "state_bytes": cost.state_bytes,
            }
        )
    return rows


def _summary(rows: list[dict[str, Any]]) -> str:
    """One sentence per pattern, against the baseline."""
    first, *others = rows
    level = first["bits_per_byte"]["estimate"]
    told = [f"{first['pattern']} needs {level:.3f} bits per byte of held-out text"]
    for row in others:
        difference = row["difference"]
        told.append(
            f"{row['pattern']} {difference['estimate']:+.3f} "
            f"[{difference['low']:+.3f}, {difference['high']:+.3f}] at {row['flops_ratio']:.2f} x "
            "the operations"
        )
    return "; ".join(told) + "."

"""Stage `compare_tokenizers`: tokenizers side by side on held-out text, as a report.

The same figures as `lmworks tokenizer compare`, for recipes: the first tokenizer is what the others
are measured against. On parallel text, fairness between the languages comes on top.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage

if TYPE_CHECKING:
    from lmworks.evaluation.tokenizer_comparison import Comparison
    from lmworks.evaluation.tokenizer_fairness import FairnessRow


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareTokenizersConfig:
    """Tokenizers side by side on held-out text; the first is what the others are measured against.

    Examples:
        lmworks eval tokenizers --tokenizers '{general: smollm2-135m, law: runs/law}' \\
            --text runs/corpus --out runs/compared
    """

    tokenizers: dict[str, str] = option(role=REFERENCE, help="name: tokenizer, two or more")
    text: str = option(role=REFERENCE, help="corpus, parallel text, folder by language, or file")
    yardstick: str = option("", help="parallel text: the language that parity is measured by")
    context: int = option(0, help="tokens of a context window; 0 leaves it out")
    price: float = option(0.0, help="price of a million tokens; 0 leaves it out")


@stage("compare_tokenizers", makes="report")
def compare_tokenizers(config: CompareTokenizersConfig, run: Run) -> dict[str, Any]:
    """Encode, count, write `report.json` and `report.html`; see CompareTokenizersConfig."""
    from lmworks.core.files import write_json, write_text
    from lmworks.evaluation import tokenizer_page
    from lmworks.evaluation.tokenizer_comparison import changed_words, compare, read_passages
    from lmworks.evaluation.tokenizer_fairness import fairness, read_parallel_text
    from lmworks.tokenizers.load import load_tokenizer

    if len(config.tokenizers) < 2:
        raise UserError("a comparison needs two tokenizers or more, each with its name")
    paths = {name: run.inputs[f"tokenizers.{name}"] for name in config.tokenizers}
    tokenizers = {name: load_tokenizer(path) for name, path in paths.items()}
    text = run.inputs["text"]
    parallel = read_parallel_text(text, config.yardstick)
    passages = read_passages(text, config.yardstick)
    found = compare(
        tokenizers, passages, context=config.context or None, price=config.price or None
    )
    fair = fairness(tokenizers, parallel) if parallel else []
    first, second = list(tokenizers.values())[:2]
    changed = changed_words(first, second, (passage.text for passage in passages))
    write_json(run.folder / "report.json", plain(found, fair))
    page = tokenizer_page.render(found, tokenizers, changed, fair)
    write_text(run.folder / "report.html", page)
    return summary(found, fair)


def plain(found: Comparison, fair: list[FairnessRow]) -> dict[str, Any]:
    """The tables as plain values."""
    return {
        "passages": len(found.passages),
        "bytes": sum(len(passage.text.encode()) for passage in found.passages),
        "tokenizers": [dataclasses.asdict(row) for row in found.rows],
        "languages": [dataclasses.asdict(row) for row in found.languages],
        "fairness": [dataclasses.asdict(row) for row in fair],
    }


def summary(found: Comparison, fair: list[FairnessRow]) -> dict[str, Any]:
    """What a manifest keeps: tokens saved in percent with their interval, and parities."""
    saved = {
        row.name: _shown(row.saved.estimate, row.saved.low, row.saved.high)
        for row in found.rows
        if row.saved is not None
    }
    parity = {
        f"{row.tokenizer} {row.language}": round(row.parity.estimate, 3)
        for row in fair
        if row.parity is not None
    }
    tokens = {row.name: row.tokens for row in found.rows}
    return {"tokens": tokens, "saved_percent": saved} | ({"parity": parity} if parity else {})


def _shown(*shares: float) -> str:
    estimate, low, high = (f"{100 * share:+.1f}" for share in shares)
    return f"{estimate} [{low}, {high}]"

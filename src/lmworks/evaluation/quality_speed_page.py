"""The analyzer's page and its table in Markdown: figures of variants as text and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lmworks.compression.measure import Speedup
from lmworks.evaluation.pareto_picture import pareto_picture
from lmworks.evaluation.statistics import Interval
from lmworks.evaluation.variant_figures import VariantFigures

_NONE = "\N{EN DASH}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A variant as text; a cell is a figure and what stands small below it."""

    name: str
    cells: tuple[tuple[str, str], ...]
    mark: str  # recommended, dominated, forecast or ""
    remark: str


def analysis_page(variants: Sequence[VariantFigures], facts: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        variants: the reference first.
        facts: see `quality_speed.analyze`.
    """
    from lmworks.evaluation.pages import render_page
    from lmworks.evaluation.quality_speed import summary

    def decode(variant: VariantFigures) -> float | None:
        return variant.speed.decode_tokens_per_s if variant.speed else None

    how = {"dominated_by": facts["dominated_by"], "chosen": facts["chosen"]}
    rate = "tokens per second of one answer"
    pictures = [
        pareto_picture(variants, lambda v: v.file_bytes / 1e6, "file size, MB", **how),
        pareto_picture(variants, decode, rate, more_is_better=True, **how),
    ]
    chosen = next((v for v in variants if v.name == facts["chosen"]), None)
    return render_page(
        "quality_speed.html.jinja",
        title=facts["title"],
        summary=summary(chosen, variants, facts["bounds"]),
        bounds=_bounds_words(facts["bounds"]),
        prefer=facts["prefer"],
        texts=facts["texts"],
        tasks=facts["tasks"],
        heads=_heads(variants),
        rows=_rows(variants, facts),
        pictures=[picture for picture in pictures if picture],
        forecast=_forecast_words(facts["forecast"]),
    )


def markdown(variants: Sequence[VariantFigures], facts: Mapping[str, Any]) -> str:
    """The table, and the recommendation before it."""
    from lmworks.evaluation.quality_speed import summary

    chosen = next((v for v in variants if v.name == facts["chosen"]), None)
    heads = ["variant", *_heads(variants), "remark"]
    lines = [
        f"# {facts['title']}",
        "",
        summary(chosen, variants, facts["bounds"]),
        "",
        f"On {facts['texts']}. Intervals are 95 %, paired by text.",
        _bounds_words(facts["bounds"]),
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    for row in _rows(variants, facts):
        cells = [f"{value} {small}".strip() for value, small in row.cells]
        name = f"**{row.name}**" if row.mark == "recommended" else row.name
        lines.append(f"| {' | '.join([name, *cells, row.remark])} |")
    if words := _forecast_words(facts["forecast"]):
        lines += ["", words]
    return "\n".join(lines) + "\n"


def _heads(variants: Sequence[VariantFigures]) -> list[str]:
    heads = ["size", "bits per weight", "KL, nats per token", "same top token", "loss"]
    heads += list(variants[0].accuracy)
    if variants[0].speed is not None:
        heads += ["answer, tokens/s", "prompt, tokens/s", "peak memory"]
    return heads


def _rows(variants: Sequence[VariantFigures], facts: Mapping[str, Any]) -> list[Row]:
    return [_row(variant, variants[0], facts) for variant in variants]


def _row(variant: VariantFigures, reference: VariantFigures, facts: Mapping[str, Any]) -> Row:
    itself = variant is reference
    cells = [
        (f"{variant.file_bytes / 1e6:,.1f} MB", ""),
        (f"{variant.bits_per_weight:.2f}", ""),
        ("0", "") if itself else _kl(variant),
        ("", "") if itself else _share(variant.agreement),
        _loss(variant, itself),
    ]
    for task in reference.accuracy:
        cells.append(_accuracy(variant, task, itself))
    if reference.speed is not None:
        cells += _speed(variant, itself)
    mark, remark = _mark(variant, facts)
    return Row(name=variant.name, cells=tuple(cells), mark=mark, remark=remark)


def _mark(variant: VariantFigures, facts: Mapping[str, Any]) -> tuple[str, str]:
    name = variant.name
    if variant.forecast:
        return "forecast", "forecast, not run"
    if name == facts["chosen"]:
        return "recommended", "recommended"
    remarks = list(facts["broken"][name])
    other = facts["dominated_by"][name]
    if other:
        remarks.insert(0, f"dominated by {other}")
    return "dominated" if other else "", "; ".join(remarks)


def _kl(variant: VariantFigures) -> tuple[str, str]:
    if variant.forecast:
        return f"about {variant.kl.estimate:.4f}", ""
    small = f"99 % of places below {variant.kl_99:.3f}"
    return f"{variant.kl.estimate:.4f}", f"{_between(variant.kl, '.4f')}{small}"


def _share(interval: Interval | None) -> tuple[str, str]:
    if interval is None:
        return _NONE, ""
    return f"{interval.estimate:.1%}", _between(interval, ".1%", last=True)


def _loss(variant: VariantFigures, itself: bool) -> tuple[str, str]:
    if variant.bits_per_byte is None or variant.loss_growth is None:
        return _NONE, ""
    bits = f"{variant.bits_per_byte.estimate:.3f} bits per byte"
    perplexity = "" if variant.perplexity is None else f"perplexity {variant.perplexity:,.2f}"
    if itself:
        return bits, perplexity
    return f"{variant.loss_growth.estimate:+.2%}", (
        f"{_between(variant.loss_growth, '+.2%')}{perplexity}"
    )


def _accuracy(variant: VariantFigures, task: str, itself: bool) -> tuple[str, str]:
    if task not in variant.accuracy:
        return _NONE, ""
    own, difference = variant.accuracy[task]
    if itself:
        return f"{own.estimate:.0%}", _between(own, ".0%", last=True)
    return f"{own.estimate:.0%}", (
        f"{100 * difference.estimate:+.0f} points"
        + (f" [{100 * difference.low:+.0f}, {100 * difference.high:+.0f}]" * difference.known)
    )


def _speed(variant: VariantFigures, itself: bool) -> list[tuple[str, str]]:
    speed = variant.speed
    if speed is None:
        return [(_NONE, "")] * 3
    rates = (
        (speed.decode_tokens_per_s, speed.decode_ratio),
        (speed.prompt_tokens_per_s, speed.prompt_ratio),
    )
    return [(f"{rate:,.0f}", "" if itself else _ratio(ratio)) for rate, ratio in rates] + [
        (f"{speed.peak_memory_bytes / 1e6:,.0f} MB", f"weights {speed.weight_bytes / 1e6:,.0f} MB")
    ]


def _ratio(ratio: Speedup) -> str:
    known = ratio.low > 0 and ratio.high < float("inf")
    return f"{ratio.ratio:.2f}x" + (f" [{ratio.low:.2f}, {ratio.high:.2f}]" if known else "")


def _between(interval: Interval, form: str, *, last: bool = False) -> str:
    if not interval.known:
        return ""
    return f"[{interval.low:{form}}, {interval.high:{form}}]" + ("" if last else "; ")


def _bounds_words(bounds: Any) -> str:
    words = []
    if bounds.max_loss is not None:
        words.append(f"a loss at most {bounds.max_loss:.1%} higher")
    if bounds.max_kl is not None:
        words.append(f"a KL of at most {bounds.max_kl:g}")
    if bounds.max_bytes is not None:
        words.append(f"a file of at most {bounds.max_bytes / 1e6:,.0f} MB")
    if bounds.min_tokens_per_s is not None:
        words.append(f"at least {bounds.min_tokens_per_s:g} tokens/s")
    return "Asked for: " + (", ".join(words) or "no bounds") + "."


def _forecast_words(forecast: Any) -> str:
    if forecast is None:
        return ""
    return (
        f"KL grows as the relative squared error of the matrices to the power of "
        f"{forecast.slope:.2f} here. Forecast from the others, each measured variant is missed by "
        f"{forecast.typical_error:.0%} on average (forecast over measured: "
        + ", ".join(f"{ratio:.2f}" for ratio in forecast.left_out)
        + ")."
    )

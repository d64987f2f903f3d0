"""Lines of a `/metrics` page in Prometheus' text format.

Written by hand: a dozen lines of a stable format, so serving needs no further package.
Source: Prometheus, Exposition formats, text format 0.0.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lmworks.inference.statistics import Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def head(name: str, kind: str, help_text: str) -> tuple[str, str]:
    """What stands before a family's samples; `kind` is counter, gauge or histogram."""
    return (f"# HELP {name} {help_text}", f"# TYPE {name} {kind}")


def sample(name: str, labels: Mapping[str, Any], value: float) -> str:
    """One line: a name, its labels if it has any, a value."""
    inside = ",".join(f'{key}="{_escape(str(text))}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {value}" if inside else f"{name} {value}"


def histogram_samples(name: str, labels: Mapping[str, Any], histogram: Histogram) -> Iterator[str]:
    """A histogram's buckets (each counts all up to its bound), sum and count."""
    counts, total = histogram.snapshot()
    for bound, count in zip([*map(repr, histogram.buckets), "+Inf"], counts, strict=True):
        yield sample(name + "_bucket", {**labels, "le": bound}, count)
    yield sample(name + "_sum", labels, total)
    yield sample(name + "_count", labels, counts[-1])


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

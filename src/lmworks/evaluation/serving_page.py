"""What `compress optimize` timed, as a page: settings by speed, and the file to serve with."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any


def serving_page(
    name: str, found: Mapping[str, Any], served: str, *, config: Mapping[str, Any]
) -> str:
    """The page as text.

    Args:
        found: as `optimized.json` holds it.
        served: the models.yaml.
        config: of the stage.
    """
    from lmworks.evaluation.pages import render_page

    rows = sorted((_row(row, found) for row in found["timed"]), key=lambda row: row["order"])
    most = max(row["rate"] for row in rows)
    for row in rows:
        row["width"] = 100 * row["rate"] / most
    return render_page(
        "serving.html.jinja",
        title=f"Serving {name} on this machine",
        lead=_lead(found),
        config=config,
        found=found,
        rows=rows,
        quality=[_quality(row) for row in found["quality"]],
        served=served,
    )


def _row(row: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    middle = statistics.median(row["seconds"])
    chosen = row["setting"] == found["best"]
    return {
        "words": row["words"],
        "chosen": chosen,
        "start": row["setting"] == found["start"],
        "rate": 1 / middle,
        "seconds": middle,
        "rounds": len(row["seconds"]),
        "low": min(row["seconds"]),
        "high": max(row["seconds"]),
        "order": (not chosen, middle),
    }


def _quality(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": row["format"],
        "size": f"{row['file_bytes'] / 1e6:,.1f} MB",
        "kl": _shown(row["kl"], ".4f"),
        "loss": _shown(row["loss_growth"], "+.2%"),
        "agreement": _shown(row["agreement"], ".1%"),
        "remark": "; ".join(row["broken"]) or "within the bounds",
        "good": not row["broken"],
    }


def _shown(interval: Mapping[str, Any], form: str) -> str:
    text = f"{interval['estimate']:{form}}"
    if interval["low"] is None or interval["high"] is None:
        return text
    return f"{text} [{interval['low']:{form}}, {interval['high']:{form}}]"


def _lead(found: Mapping[str, Any]) -> str:
    gain = found["speedup"]
    if found["fastest"] == found["start"]:
        return "Nothing that is within the bounds is faster than serving the model as it is."
    low, high = gain["low"], gain["high"]
    known = low and high is not None and math.isfinite(high)
    spread = f" (95 % interval {low:.2f} to {high:.2f})" if known else ""
    words = next(row["words"] for row in found["timed"] if row["setting"] == found["fastest"])
    if found["best"] != found["fastest"]:
        return (
            f"Serve the model as it is. {words} came out fastest, and was {gain['ratio']:.2f} "
            f"times as fast when measured again{spread}: that shows nothing."
        )
    return f"{words}: {gain['ratio']:.2f} times as fast as serving the model as it is{spread}."

"""The comparison of tokenizers as one self-contained page: tables, and tokens in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmworks.evaluation.pages import render_page
from lmworks.evaluation.tokenizer_comparison import ChangedWord, Comparison
from lmworks.evaluation.tokenizer_fairness import FairnessRow
from lmworks.tokenizers.token_spans import units_of
from lmworks.tokenizers.tokenizer import PipelineTokenizer

_SHOWN_CHARACTERS = 1500
_COLOURS = 5
_VISIBLE = str.maketrans({"\n": "⏎\n", "\t": "⇥\t"})


def render(
    comparison: Comparison,
    tokenizers: Mapping[str, PipelineTokenizer],
    changed: Sequence[ChangedWord] = (),
    fairness: Sequence[FairnessRow] = (),
) -> str:
    """The page as text."""
    text = _beginning(comparison)
    return render_page(
        "tokenizers.html.jinja",
        comparison=comparison,
        samples=[(name, _coloured(tokenizer, text)) for name, tokenizer in tokenizers.items()],
        changed=changed[:60],
        fairness=fairness,
        num_changed=len(changed),
    )


def _beginning(comparison: Comparison) -> str:
    """The first passage, and more where passages are short."""
    text = ""
    for passage in comparison.passages:
        text += passage.text if not text or text.endswith("\n") else "\n" + passage.text
        if len(text) >= _SHOWN_CHARACTERS:
            break
    return text[:_SHOWN_CHARACTERS]


def _coloured(tokenizer: PipelineTokenizer, text: str) -> list[dict[str, Any]]:
    """Tokens with their colour; those that share a character are shown once, together."""
    ids, spans = tokenizer.encode_offsets(text)
    return [
        {
            "text": text[unit.start : unit.end].translate(_VISIBLE),
            "ids": unit.ids,
            "colour": number % _COLOURS if unit.ids else -1,
        }
        for number, unit in enumerate(units_of(ids, spans, 0, len(text)))
    ]

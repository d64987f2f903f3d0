"""`docs/architectures.md` from the table of architectures, so that the page says what is read.

python tools/make_architecture_docs.py           # write the page
"""

from __future__ import annotations

import sys
from pathlib import Path

from lmworks.models.architectures.base import ARCHITECTURES, Architecture, Layout, architecture

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
_START = """# Architectures

<!-- Made from the table of architectures by tools/make_architecture_docs.py. -->

Models of other projects whose weights are read into our blocks, and written back. A name is the
`model_type` of a `config.json`, or the `general.architecture` of a GGUF file. A setting that would
change the answer and is not supported is refused in one line that names it. The tests hold them
against transformers with random weights, and decoders in GGUF files against llama.cpp
(`tests/models`).

| name | what it is | Hugging Face folder | GGUF file |
|---|---|---|---|
"""
_END = """
GGUF tensors of the types F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, IQ4_NL and
IQ4_XS are read; Q8_0, Q4_0 and Q4_1 can be computed with as they are.

Rotary positions are scaled by position interpolation, NTK, dynamic NTK, YaRN, LongRoPE and the rule
of Llama 3. Where frequencies depend on a sequence's length (dynamic NTK, LongRoPE), keys are kept
unturned and all turned by the length of the moment.
"""


def page() -> str:
    """The whole page."""
    rows = [_row(architecture(name), target) for name, target in ARCHITECTURES.items()]
    return _START + "\n".join(rows) + "\n" + _END


def _row(found: Architecture, target: str) -> str:
    __import__(target.partition(":")[0])
    about = (sys.modules[target.partition(":")[0]].__doc__ or "").strip().partition("\n")[0]
    cells = [f"`{found.name}`", about.rstrip("."), _formats(found.hf), _formats(found.gguf)]
    return f"| {' | '.join(cells)} |"


def _formats(layout: Layout | None) -> str:
    if layout is None:
        return ""
    return "read, written" if layout.write_config else "read"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

"""What both sides of the comparison with TRL train on, and how: conversations, model, rates."""

from __future__ import annotations

import json
import re
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from tests.training import tiny

from lmworks.models.model import Model
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import train_bpe

NUM_STEPS, ROWS_PER_STEP = 50, {"tiny": 4, "smollm2": 2}
# 2e-5 is SFTTrainer's own default. AdamW's first steps are as long as the rate whatever the
# gradient, so a gradient that is mere rounding moves its weight that far: a rate is a tolerance.
RATES = {"tiny": 1e-3, "smollm2": 2e-5}
# The template's own words around an answer; `{% generation %}` tells TRL what it is, not us.
TAGGED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
UNTAGGED = re.sub(r"{% (end)?generation %}", "", TAGGED)
ORACLES = Path(__file__).with_name("oracles")


def conversations(count: int) -> list[list[dict[str, str]]]:
    """Conversations of one or two turns about Python, from its own help."""
    found = []
    for name, text in sorted(topics.items()):
        sentences = re.findall(r"[A-Z][^.]{30,120}\.", " ".join(text.split()))
        for first, second in zip(sentences[::2], sentences[1::2]):
            turns = [("user", f"What of {name}?"), ("assistant", first)]
            if len(found) % 3 == 0:
                turns += [("user", "And then?"), ("assistant", second)]
            found.append([{"role": role, "content": said} for role, said in turns])
            if len(found) == count:
                return found
    raise AssertionError(f"only {len(found)} conversations")


def rows(kind: str) -> list[list[dict[str, str]]]:
    return conversations(NUM_STEPS * ROWS_PER_STEP[kind])


def tiny_tokenizer() -> PipelineTokenizer:
    import dataclasses

    made = train_bpe([text for _, text in sorted(topics.items())][:20], vocab_size=400)
    return PipelineTokenizer(dataclasses.replace(made.vocabulary, chat_template=UNTAGGED))


def tiny_model(vocab_size: int, seed: int = 0) -> Model:
    return tiny.tiny_model(vocab_size, seed, hidden_size=64, heads=(4, 2), inner=128, length=1024)


def oracle(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ORACLES / f"sft_{kind}.json").read_text())
    return found

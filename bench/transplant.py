"""Which way to begin new rows costs SmolLM2-135M least, on text of a field.

    python bench/transplant.py [--language de-DE] [--passages 120]

The field is the Debian handbook, English if nothing else is said: two thirds of its pages make the
tokenizers and the auxiliary embedding, passages of the others are measured, and pages are what the
bootstrap draws. Two tokenizers: SmolLM2's with up to 4,000 tokens more, and one of up to 16,000
learnt from the same pages alone (as many as pairs are seen twice). Nothing is trained after the
cut. Prints both leaderboards and keeps them.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from real import _plain, debian

from lmworks.core.files import read_json
from lmworks.data.documents import Document, stable_share, write_documents
from lmworks.evaluation.transplant_leaderboard import (
    TransplantLeaderboardConfig,
    transplant_leaderboard,
)
from lmworks.tokenizers.extend import ExtendTokenizerConfig, extend_tokenizer
from lmworks.tokenizers.train import TrainTokenizerConfig, train_tokenizer

MODEL = "smollm2-135m"
ADDED, TRAINED = 4000, 16000
HELD_OUT = 1 / 3


def write_corpus(folder: Path, language: str) -> None:
    """The handbook's pages, each one document and one group, as a corpus folder."""
    pages = debian("debian-handbook") / f"usr/share/doc/debian-handbook/html/{language}"
    rows: dict[str, list[Document]] = {"train": [], "heldout": []}
    for page in sorted(pages.glob("*.html")):
        text = _plain(page.read_text(encoding="utf-8")).strip()
        row = Document(id=page.stem, group=page.stem, source=page.name, title=page.stem, text=text)
        rows["heldout" if stable_share(page.stem) < HELD_OUT else "train"].append(row)
    for name, documents in rows.items():
        write_documents(folder / f"{name}.jsonl", documents)


def tokenizers(folder: Path) -> dict[str, Path]:
    """Both tokenizers, learnt from the corpus in the folder."""
    corpus = str(folder / "corpus")
    longer = ExtendTokenizerConfig(tokenizer=MODEL, corpus=corpus, add=ADDED)
    anew = TrainTokenizerConfig(corpus=corpus, vocab_size=TRAINED, pattern="smollm")
    return {
        "extended": extend_tokenizer(longer, folder / "extended").path,
        "trained": train_tokenizer(anew, folder / "trained").path,
    }


def board(folder: Path, tokenizer: Path, passages: int) -> dict[str, object]:
    """One leaderboard, printed as it is made."""
    started = time.monotonic()
    config = TransplantLeaderboardConfig(
        model=MODEL,
        tokenizer=str(tokenizer),
        text=str(folder / "corpus"),
        heldout=str(folder / "corpus"),
        max_passages=passages,
        passage_bytes=400,
        threads=1,
    )
    made = transplant_leaderboard(config, folder / f"board-{tokenizer.name}")
    print(f"\n{tokenizer.name}\n\n{(made.path / 'leaderboard.md').read_text()}", flush=True)
    found = read_json(made.path / "leaderboard.json")
    summary = made.metrics["summary"]
    return {"summary": summary, "seconds": round(time.monotonic() - started), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--language", default="en-US")
    parser.add_argument("--passages", type=int, default=120)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lmworks-transplant-") as name:
        folder = Path(name)
        write_corpus(folder / "corpus", options.language)
        made = tokenizers(folder)
        boards = {name: board(folder, path, options.passages) for name, path in made.items()}
    claim = "transplant" if options.language == "en-US" else f"transplant_{options.language}"
    found = {
        "claim": claim,
        "command": " ".join(["python", "bench/transplant.py", *sys.argv[1:]]),
        "model": MODEL,
        "text": f"debian-handbook {options.language}, pages held out by name",
        "unit": "bits per byte",
        "boards": boards,
        "machine": platform.processor() or platform.machine(),
        "threads": 1,
        "versions": {package: metadata.version(package) for package in ("torch", "numpy")},
    }
    stamp = f"{platform.machine()}_{time.strftime('%Y%m')}"
    path = Path(__file__).parent / "results" / f"{claim}_{stamp}.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(f"kept in {path.relative_to(Path(__file__).parent.parent)}")


if __name__ == "__main__":
    main()

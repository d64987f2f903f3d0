"""The stage that compares: figures counted by hand, fairness on parallel text, both in the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lmworks.cli.tokenizer_compare import command
from lmworks.core.errors import UserError
from lmworks.evaluation.compare_tokenizers import CompareTokenizersConfig, compare_tokenizers
from lmworks.evaluation.tokenizer_fairness import ParallelText, fairness, read_parallel_text
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.train import train_bpe

ENGLISH = [f"the heart and the liver number {n}" for n in range(40)]
GERMAN = [f"das Herz und die Leber Nummer {n}" for n in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parallel text, and a tokenizer of each language."""
    folder = tmp_path_factory.mktemp("parallel")
    for name, lines in (("en", ENGLISH), ("de", GERMAN)):
        for side in ("train", "heldout"):
            (folder / "text" / side).mkdir(parents=True, exist_ok=True)
            text = "".join(line + "\n" for line in lines)
            (folder / "text" / side / f"{name}.txt").write_text(text)
        train_bpe(lines, vocab_size=320).save(folder / name)
    groups = [str(n // 4) for n in range(40)]
    (folder / "text" / "heldout_groups.json").write_text(json.dumps(groups))
    return folder


def config(folder: Path, **changes: str) -> CompareTokenizersConfig:
    return CompareTokenizersConfig(
        tokenizers={"english": str(folder / "en"), "german": str(folder / "de")},
        text=str(folder / "text"),
        **changes,  # type: ignore[arg-type]
    )


def test_fairness_is_what_counting_gives(folder: Path) -> None:
    text = read_parallel_text(folder / "text", "en")
    assert text is not None and list(text.sentences) == ["en", "de"]
    tokenizers = {name: load_tokenizer(folder / name) for name in ("en", "de")}
    rows = {(row.tokenizer, row.language): row for row in fairness(tokenizers, text)}
    for name, tokenizer in tokenizers.items():
        english, german = (
            sum(len(tokenizer.encode(line)) for line in lines) for lines in (ENGLISH, GERMAN)
        )
        assert rows[name, "en"].parity is None
        assert rows[name, "en"].tokens_per_sentence.estimate == pytest.approx(english / 40)
        parity = rows[name, "de"].parity
        assert parity is not None and parity.estimate == pytest.approx(german / english)
        assert parity.low <= parity.estimate <= parity.high
    assert rows["en", "de"].parity.low > 1 > rows["de", "de"].parity.high  # type: ignore[union-attr]


def test_the_report(folder: Path, tmp_path: Path) -> None:
    made = compare_tokenizers(config(folder, yardstick="en"), tmp_path / "out")
    report = json.loads((made.path / "report.json").read_text())
    assert [row["name"] for row in report["tokenizers"]] == ["english", "german"]
    assert [row["language"] for row in report["fairness"]] == ["en", "de"] * 2
    assert report["bytes"] == sum(len(line) for line in ENGLISH + GERMAN)
    page = (made.path / "report.html").read_text()
    assert "The same sentences in each language" in page and "Tokens per sentence" in page
    assert made.metrics["tokens"]["english"] == report["tokenizers"][0]["tokens"]
    assert set(made.metrics["parity"]) == {"english de", "german de"}
    assert "german" in made.metrics["saved_percent"]
    assert compare_tokenizers(config(folder, yardstick="en"), tmp_path / "out").cached
    inputs = made.manifest["inputs"]
    assert set(inputs) == {"tokenizers.english", "tokenizers.german", "text"}


def test_a_corpus_is_compared_on_what_it_holds_out(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"id": str(n), "group": f"g{n // 2}", "source": "s", "title": "t", "text": line}
        for n, line in enumerate(ENGLISH)
    ]
    (tmp_path / "corpus").mkdir()
    text = "\n".join(map(json.dumps, rows))
    (tmp_path / "corpus" / "heldout.jsonl").write_text(text)
    (tmp_path / "corpus" / "train.jsonl").write_text("never read")
    tokenizers = {"english": str(folder / "en"), "german": str(folder / "de")}
    settings = CompareTokenizersConfig(tokenizers=tokenizers, text=str(tmp_path / "corpus"))
    made = compare_tokenizers(settings, tmp_path / "out")
    report = json.loads((made.path / "report.json").read_text())
    assert report["passages"] == 40 and report["fairness"] == [] and report["languages"] == []
    saved = report["tokenizers"][1]["saved"]
    assert saved["high"] < 0 and "parity" not in made.metrics


def test_bad_settings(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two tokenizers or more"):
        compare_tokenizers(
            CompareTokenizersConfig(tokenizers={"a": str(folder / "en")}, text=str(folder)),
            tmp_path / "out",
        )
    with pytest.raises(UserError, match="has no language 'fr': it has de, en"):
        compare_tokenizers(config(folder, yardstick="fr"), tmp_path / "out")
    (tmp_path / "text" / "heldout").mkdir(parents=True)
    (tmp_path / "text" / "heldout" / "en.txt").write_text("one\n")
    (tmp_path / "text" / "heldout_groups.json").write_text('["a", "b"]')
    with pytest.raises(UserError, match=r"en\.txt has not the lines"):
        read_parallel_text(tmp_path / "text")


def test_the_command_tells_fairness(folder: Path) -> None:
    arguments = [str(folder / "en"), str(folder / "de"), "--text", str(folder / "text")]
    shown = CliRunner().invoke(command, arguments, catch_exceptions=False).output
    assert "tokens/sentence" in shown and "parity" in shown
    found = json.loads(CliRunner().invoke(command, [*arguments, "--json"]).output)
    assert [row["language"] for row in found["fairness"]] == ["de", "en"] * 2
    assert found["changed_words"]


def test_parity_is_always_to_the_first_language(folder: Path) -> None:
    sentences = {"en": ENGLISH, "de": GERMAN, "again": ENGLISH}
    text = ParallelText(sentences=sentences, groups=[str(n) for n in range(40)])
    rows = fairness({"english": load_tokenizer(folder / "en")}, text)
    assert rows[2].parity is not None and rows[2].parity.estimate == 1

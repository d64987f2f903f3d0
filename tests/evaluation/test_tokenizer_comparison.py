"""Comparing tokenizers: figures that can be counted by hand, the page, the command."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from click.testing import CliRunner

from lmworks.cli.tokenizer_compare import command
from lmworks.core.errors import UserError
from lmworks.evaluation.tokenizer_comparison import (
    Passage,
    changed_words,
    compare,
    passages_of,
    read_passages,
)
from lmworks.evaluation.tokenizer_page import render
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import train_bpe

TEXTS = [text for _, text in sorted(topics.items())]


@pytest.fixture(scope="module")
def pair() -> dict[str, PipelineTokenizer]:
    """One that knows little and one that knows more."""
    return {
        "small": train_bpe(TEXTS[:2], vocab_size=300),
        "large": train_bpe(TEXTS[:40], vocab_size=2000),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for language, texts in (("en", TEXTS[40:50]), ("xx", ["größer und schöner\n" * 40])):
        (tmp_path / "texts" / language).mkdir(parents=True)
        for number, text in enumerate(texts):
            (tmp_path / "texts" / language / f"{number}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "texts" / "picture.png").write_bytes(b"\xff\xd8\xff")
    return tmp_path


def test_figures(pair: dict[str, PipelineTokenizer]) -> None:
    passages = [
        Passage(text=text[:1500], source=str(i), language="en")
        for i, text in enumerate(TEXTS[50:70])
    ]
    found = compare(pair, passages, context=1000, price=2.0)
    small, large = found.rows
    tokens = sum(len(pair["large"].encode(p.text)) for p in passages)
    size = sum(len(p.text.encode()) for p in passages)
    words = sum(len(p.text.split()) for p in passages)
    assert large.tokens == tokens and large.bytes_per_token.estimate == pytest.approx(size / tokens)
    assert large.fertility == pytest.approx(tokens / words)
    assert large.context_share == tokens / 1000 and large.price == pytest.approx(tokens * 2e-6)
    assert small.saved is None and large.saved is not None
    assert large.saved.estimate == pytest.approx(1 - tokens / small.tokens) and large.saved.low > 0
    assert small.failures == large.failures == 0 and found.languages == ()


def test_round_trip_failures_are_shown() -> None:
    from lmworks.tokenizers import vocab_txt
    from tokenizers import Tokenizer, models, pre_tokenizers

    lossy = PipelineTokenizer(vocab_txt.from_texts(["[UNK]", "a"], lowercase=True))
    assert Tokenizer and models and pre_tokenizers
    found = compare({"bert": lossy}, [Passage(text="A b", source="x", language="en")])
    assert found.rows[0].failures == 1 and found.rows[0].first_failure == "A b"


def test_changed_words(pair: dict[str, PipelineTokenizer]) -> None:
    text = "the statement is a statement"
    changed = changed_words(pair["small"], pair["large"], [text])
    word = next(word for word in changed if word.word == " statement")
    assert word.count == 2 and word.after == (" statement",)
    assert word.saved == 2 * (len(word.before) - 1) and "".join(word.before) == " statement"
    assert changed == sorted(changed, key=lambda w: (-abs(w.saved), w.word))


def test_passages_join_to_the_text() -> None:
    for text in (TEXTS[0], "x" * 9000, "a\n" * 3000):
        assert "".join(passages_of(text)) == text
        assert max(map(len, passages_of(text))) <= 2000


def test_languages_are_folders(folder: Path, pair: dict[str, PipelineTokenizer]) -> None:
    found = compare(pair, read_passages(folder / "texts"))
    rows = {(row.tokenizer, row.language): row for row in found.languages}
    assert set(rows) == {(name, language) for name in pair for language in ("en", "xx")}
    assert rows["small", "en"].parity == 1.0
    ratio = rows["small", "xx"].tokens / rows["small", "en"].tokens
    assert rows["small", "xx"].parity == pytest.approx(ratio)
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="holds no UTF-8 text"):
        read_passages(folder / "empty")


def test_the_page_holds_every_character_once(pair: dict[str, PipelineTokenizer]) -> None:
    text = "<script>alert(1)</script> größer 👩‍👩‍👧 &amp;\tx"
    found = compare(pair, [Passage(text=text, source="x", language="en")])
    page = render(found, pair, changed_words(*pair.values(), [text]))
    assert "<script>" not in page and "&lt;" in page
    shown = page.split('class="tokens"')[1].split("</div>")[0]
    assert shown.count("👩") == 2 and shown.count("👧") == 1


def test_the_command(folder: Path, pair: dict[str, PipelineTokenizer]) -> None:
    names = []
    for name, tokenizer in pair.items():
        tokenizer.save(folder / name)
        names.append(str(folder / name))
    page = folder / "page.html"
    arguments = [*names, "--text", str(folder / "texts"), "--html", str(page)]
    done = CliRunner().invoke(command, [*arguments, "--context", "8000"], catch_exceptions=False)
    assert done.exit_code == 0 and "words changed" in done.output and page.is_file()
    done = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    found = json.loads(done.output)
    assert [row["name"] for row in found["tokenizers"]] == list(pair)
    assert found["changed_words"][0]["saved"]

"""What a tokenizer is trained on: every kind of file, damage, runs that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from click.testing import CliRunner

from lmworks.cli.stage_command import stage_command
from lmworks.core.errors import MissingExtra, UserError
from lmworks.tokenizers import patterns, texts
from lmworks.tokenizers.counting import count_files, count_texts, parts_of
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.texts import placed_texts, read_texts
from lmworks.tokenizers.train import TrainTokenizerConfig, train_bpe, train_tokenizer
from lmworks.tokenizers.trainers.base import Wanted
from lmworks.tokenizers.trainers.byte_level import ByteLevelTrainer

TEXTS = [text for _, text in sorted(topics.items())]
LINES = "".join(TEXTS).splitlines(keepends=True)


def write_json_lines(path: Path, rows: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def write_parquet(path: Path, **columns: list[Any]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(
        pyarrow.table(columns), path, row_group_size=7
    )
    return path


def vocabulary_of(corpus: Path, out: Path, **options: Any) -> bytes:
    train_tokenizer(TrainTokenizerConfig(corpus=str(corpus), vocab_size=700, **options), out)
    return (out / "tokenizer.json").read_bytes()


def test_every_kind_of_file_gives_the_same_tokens(tmp_path: Path) -> None:
    expected = vocabulary_of(write_json_lines(tmp_path / "a.jsonl", TEXTS[:30]), tmp_path / "1")
    table = write_parquet(tmp_path / "a.parquet", number=list(range(30)), text=TEXTS[:30])
    assert vocabulary_of(table, tmp_path / "2") == expected
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(70):
        (folder / f"{number:02}.txt").write_text(TEXTS[number % 30] if number < 30 else "\n")
    assert load_tokenizer(tmp_path / "1").vocabulary == load_tokenizer(tmp_path / "2").vocabulary
    metrics = train_tokenizer(
        TrainTokenizerConfig(corpus=str(folder), vocab_size=700), tmp_path / "3"
    ).metrics
    assert "languages" not in metrics
    theirs = json.loads(expected)["model"]["merges"]
    ours = json.loads((tmp_path / "3" / "tokenizer.json").read_text())["model"]["merges"]
    assert ours[:300] == theirs[:300]  # beyond, a run of line breaks more counts


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_reading_goes_on_at_any_place(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "_PART", 3000)
    path = tmp_path / f"a.{kind}"
    if kind == "txt":
        path.write_text("".join(LINES[:400]) + "é" * 5000)
    elif kind == "jsonl":
        write_json_lines(path, [*TEXTS[:20], "é"])
    else:
        write_parquet(path, text=TEXTS[:20])
    whole = list(placed_texts(path))
    assert len(whole) > 5
    for number, (_, place) in enumerate(whole):
        assert list(placed_texts(path, place)) == whole[number + 1 :]
    if kind == "txt":
        assert "".join(text for text, _ in whole) == path.read_text()


def test_texts_are_parted_between_lines_or_words() -> None:
    for text in ("a line\n" * 400_000, "word " * 500_000, "é" * (1 << 21)):
        parts = list(parts_of(text))
        assert "".join(parts) == text and max(map(len, parts)) <= 1 << 20
        assert all(part[0] != "\n" for part in parts[1:])


@pytest.mark.parametrize("pattern", ["gpt2", "o200k", "deepseek"])
def test_parts_have_the_words_of_the_whole(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmworks.tokenizers import counting

    blank = ByteLevelTrainer(Wanted(vocab_size=400, pattern=pattern)).blank()
    text = "".join(TEXTS[:40])
    whole = dict(count_texts(blank, [text]).items())
    monkeypatch.setattr(counting, "_PART", 5000)
    assert dict(count_texts(blank, [text]).items()) == whole


def test_a_very_long_word_is_counted_in_parts() -> None:
    blank = ByteLevelTrainer(Wanted(vocab_size=400)).blank()
    found = dict(count_texts(blank, ["é" * 5000 + " " + "x" * 4096]).items())
    assert found == {"é".encode() * 2048: 2, "é".encode() * 904: 1, b" " + b"x" * 4095: 1, b"x": 1}


KILLED = """
import os, signal, sys
from lmworks.tokenizers import counting
from lmworks.tokenizers.train import TrainTokenizerConfig, train_tokenizer
counting.CHECKPOINT_CHARACTERS = 5_000
left, add = int(sys.argv[3]), counting.TextCounter.add
def until_killed(self, text):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, text)
counting.TextCounter.add = until_killed
train_tokenizer(TrainTokenizerConfig(corpus=sys.argv[1], vocab_size=700), sys.argv[2])
"""


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, name in enumerate(("de", "en")):
        write_json_lines(corpus / f"{name}.jsonl", TEXTS[number * 30 : number * 30 + 30])

    def run(out: str, kill_after: int) -> int:
        command = [sys.executable, "-c", KILLED, str(corpus), str(tmp_path / out), str(kill_after)]
        return subprocess.run(command, env=os.environ | {"PYTHONWARNINGS": "error"}).returncode

    assert run("whole", 1000) == 0
    assert run("killed", 20) == -signal.SIGKILL
    state = tmp_path / "killed.partial" / ".work" / "corpus" / "counts" / "0" / "reached.json"
    reached = json.loads(state.read_text())
    assert sum(reached["runs"]) >= 1 and reached["place"] > 0
    assert run("killed", 25) == -signal.SIGKILL  # past the first language
    assert (state.parent / "counted.npz").is_file()
    read_after = sum(1 for _ in read_texts(corpus / "en.jsonl"))
    assert run("killed", read_after) == 0  # it would be killed if it began anew
    for file in ("tokenizer.json", "tokenizer_config.json"):
        killed, whole = (tmp_path / name / file for name in ("killed", "whole"))
        assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"text \xff\xfe", r"a.txt is not UTF-8 text \(byte 5\)"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"a.jsonl is not UTF-8 text \(byte 24\)"),
        ("a.parquet", b"PAR1 garbage", r"a.parquet is not a Parquet file"),
        ("folder/de/a.png", b"\x89PNG\r\n", r"a.png is not UTF-8 text \(byte 0\)"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match=message):
        vocabulary_of(tmp_path / Path(name).parts[0], tmp_path / "out")


def test_a_table_without_text(tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "a.parquet", body=["x"])
    with pytest.raises(UserError, match="no column 'text'; it has: body"):
        vocabulary_of(table, tmp_path / "out")
    table = write_parquet(tmp_path / "b.parquet", text=["x", None])
    with pytest.raises(UserError, match="row 2: 'text' is no string"):
        vocabulary_of(table, tmp_path / "out")


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingExtra, match=r'pip install "lmworks\[parquet\]"'):
        vocabulary_of(tmp_path / "a.parquet", tmp_path / "out")


def test_a_pattern_of_ones_own(tmp_path: Path) -> None:
    tokenizer = train_bpe(["aa1aa 22"] * 5, vocab_size=300, pattern=r"regex:\d|[a-z]+| ")
    assert tokenizer.pre_tokenizer.cuts[0].expression == r"\d|[a-z]+| "
    with pytest.raises(UserError, match=r"the pattern '\[a-' is not valid"):
        train_bpe(["a"], vocab_size=300, pattern="regex:[a-")


@pytest.mark.parametrize("expression", [r"((?:a|aa)+)(?<!a)", r"(?:a|aa)+(?<=b)c"])
def test_a_catastrophic_pattern_is_given_up(
    expression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "_SECONDS", 0.2)
    with pytest.raises(UserError, match=r"takes time with the square|was given up after"):
        train_bpe(["a" * 5_000_000], vocab_size=300, pattern=f"regex:{expression}")


def test_flags_that_may_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(TEXTS[3])
    (tmp_path / "terms").write_text("Art. 5\n\n@home\n")
    command = stage_command("train", train_tokenizer, "Train.")
    words = ["--corpus", str(tmp_path / "book.txt"), "--out", str(tmp_path / "tok")]
    words += ["--special-token", "[A]", "--special-token", "[B, C]", "--vocab-size", "300"]
    words += ["--keep", f"@{tmp_path / 'terms'}", "--keep", "x y", "--reserve", "2"]
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0
    tokenizer = load_tokenizer(tmp_path / "tok")
    added = [token.text for token in tokenizer.vocabulary.added_tokens]
    assert added == ["[A]", "[B, C]", "<|reserved_0|>", "<|reserved_1|>", "Art. 5", "@home", "x y"]
    with pytest.raises(UserError, match=r"@nowhere: nowhere can't be read"):
        CliRunner().invoke(command, [*words, "--keep", "@nowhere"], catch_exceptions=False)


@pytest.mark.slow
def test_a_line_of_200_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    with open(path, "w") as file:
        for number in range(2000):
            file.write("x" * 100_000 if number % 2 else "word " * 20_000)
    script = (
        "import resource, sys\n"
        "from lmworks.tokenizers.train import TrainTokenizerConfig, train_tokenizer\n"
        "train_tokenizer(TrainTokenizerConfig(corpus=sys.argv[1], vocab_size=300), sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", script, str(path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 600_000  # KiB


def test_nothing_is_left_when_counting_ends(tmp_path: Path) -> None:
    corpus = write_json_lines(tmp_path / "a.jsonl", TEXTS[:5])
    blank = ByteLevelTrainer(Wanted(vocab_size=400)).blank()
    count_files(blank, {"": [corpus]}, work=tmp_path / "work")
    files = [path.name for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert files == ["counted.npz"]

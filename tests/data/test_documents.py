"""Files of documents: written and read back the same, and clear about what is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.data.documents import (
    Document,
    Dropped,
    read_documents,
    read_dropped,
    stable_share,
    write_documents,
)


@given(texts=st.lists(st.text(), max_size=5))
def test_documents_come_back_as_written(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    rows = [
        Document(id=str(i), group="g", source="s\u2028", title=text[:9], text=text)
        for i, text in enumerate(texts)
    ]
    write_documents(path, rows)
    assert list(read_documents(path)) == rows


def test_a_lone_surrogate_is_written_as_a_question_mark(tmp_path):
    row = Document(id="1", group="g", source="s", title="t", text="half \ud800 a character")
    write_documents(tmp_path / "x.jsonl", [row])
    assert next(read_documents(tmp_path / "x.jsonl")).text == "half ? a character"


def test_same_rows_same_bytes_and_dropped_rows_have_their_own_shape(tmp_path):
    row = Dropped(id="1", source="a.bin", title="a.bin", rule="binary", evidence="holds NUL bytes")
    write_documents(tmp_path / "a", [row])
    write_documents(tmp_path / "b", [row])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert list(read_dropped(tmp_path / "a")) == [row]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"id": "1", "group": "g", "source": "s", "title": "t"}', "'text' is missing"),
        (b'{"id": 1, "group": "g", "source": "s", "title": "t", "text": "x"}', "'id'"),
        (b'{"id": "\xff"}', "not UTF-8 text (byte 8 of the line)"),
    ],
)
def test_errors_name_file_and_line(tmp_path, line, said):
    good = b'{"id": "1", "group": "g", "source": "s", "title": "t", "text": "x"}\n'
    path = tmp_path / "train.jsonl"
    path.write_bytes(good + line + b"\n")
    with pytest.raises(UserError) as caught:
        list(read_documents(path))
    assert f"{path}, line 2: " in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_what_makes_one(tmp_path):
    with pytest.raises(UserError, match="lmworks data build"):
        list(read_documents(tmp_path / "train.jsonl"))
    with pytest.raises(UserError, match="is a folder"):
        list(read_documents(tmp_path))


@given(parts=st.lists(st.text(), min_size=1, max_size=3))
def test_the_coin_is_a_share_and_lands_the_same_again(parts):
    assert 0 <= stable_share(*parts) < 1
    assert stable_share(*parts) == stable_share(*parts)


def test_the_coin_is_fair():
    shares = sorted(stable_share("seed", str(i)) for i in range(4000))
    assert all(abs(share - i / 4000) < 0.03 for i, share in enumerate(shares))

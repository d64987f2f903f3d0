"""Packing: every token once, nothing too long, and against the slow way to do the same."""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lmworks.cli.tokenizer_pack import command
from lmworks.core.errors import UserError
from lmworks.tokenizers.packing import PACKERS, Packing, pack
from lmworks.tokenizers.tokenizer import PipelineTokenizer

lengths = st.lists(st.integers(0, 40), max_size=60)


@given(lengths, st.integers(1, 20), st.sampled_from(sorted(PACKERS)))
def test_every_token_stands_in_one_place(sizes: list[int], length: int, strategy: str) -> None:
    packing = pack(sizes, length, strategy)
    assert packing == pack(sizes, length, strategy)
    seen = {}
    for number in range(len(packing.sequences)):
        borders = packing.cu_seqlens(number)
        assert 0 < borders[-1] <= length and borders == sorted(set(borders))
        for piece in packing.sequences[number]:
            for token in range(piece.start, piece.stop):
                assert (piece.document, token) not in seen
                seen[piece.document, token] = number
    assert len(seen) == sum(sizes) == packing.num_tokens
    longer = sum(size > length for size in sizes)
    if strategy == "concatenate":
        assert len(packing.sequences) == math.ceil(sum(sizes) / length)
    else:
        assert packing.documents_cut == longer
        fewest = math.ceil(sum(sizes) / length)
        # At most one sequence is less than half full, or its pieces would stand in another.
        assert fewest <= len(packing.sequences) <= 2 * fewest


@given(st.lists(st.integers(1, 20), max_size=60))
def test_the_fast_ways_are_the_slow_ways(sizes: list[int]) -> None:
    order = sorted(range(len(sizes)), key=lambda document: -sizes[document])
    for strategy, choice in (("first-fit-decreasing", "first"), ("best-fit", "best")):
        rooms: list[int] = []
        for document in order:
            fitting = [n for n, room in enumerate(rooms) if room >= sizes[document]]
            if not fitting:
                rooms.append(20)
                fitting = [len(rooms) - 1]
            chosen = fitting[0] if choice == "first" else min(fitting, key=lambda n: rooms[n])
            rooms[chosen] -= sizes[document]
        found = pack(sizes, 20, strategy)
        left = [20 - found.cu_seqlens(number)[-1] for number in range(len(found.sequences))]
        assert sorted(left) == sorted(rooms)
        if choice == "first":
            assert left == rooms


def test_rows_are_filled_with_positions_that_begin_anew() -> None:
    documents = [[1, 2, 3], [4] * 5, [], [6, 7]]
    packing = pack([3, 5, 0, 2], 4, "best-fit")
    rows = [(ids.tolist(), places.tolist()) for ids, places in packing.fill(documents, pad=0)]
    assert rows == [
        ([4, 4, 4, 4], [0, 1, 2, 3]),
        ([1, 2, 3, 4], [0, 1, 2, 0]),
        ([6, 7, 0, 0], [0, 1, 0, 1]),
    ]
    assert packing.cu_seqlens(1) == [0, 3, 4] and packing.padding_share == pytest.approx(2 / 12)
    stream = pack([3, 5, 0, 2], 4, "concatenate").fill(documents, pad=9)
    assert np.concatenate([ids for ids, _ in stream]).tolist() == [1, 2, 3, *[4] * 5, 6, 7, 9, 9]


def test_nothing_to_pack() -> None:
    for strategy in PACKERS:
        packing = pack([0, 0], 8, strategy)
        assert packing == Packing(length=8, sequences=[]) and packing.padding_share == 0
    with pytest.raises(UserError, match="1 token or more"):
        pack([3], 0)
    with pytest.raises(UserError, match="did you mean 'best-fit'"):
        pack([3], 4, "best_fit")


@pytest.mark.parametrize("strategy", sorted(PACKERS))
def test_time_grows_no_faster_than_n_log_n(strategy: str) -> None:
    draw = random.Random(0)
    sizes = [draw.randrange(1, 2048) for _ in range(60_000)]
    started = time.perf_counter()
    packing = pack(sizes, 2048, strategy)
    assert time.perf_counter() - started < 5  # trying every sequence would take minutes
    assert packing.padding_share < 0.01


def test_the_command(small: PipelineTokenizer, tmp_path: Path) -> None:
    small.save(tmp_path)
    rows = [json.dumps({"text": "the cat sat " * number}) for number in range(1, 30)]
    (tmp_path / "c.jsonl").write_text("\n".join(rows))
    arguments = [str(tmp_path), str(tmp_path / "c.jsonl"), "--length", "64"]
    shown = CliRunner().invoke(command, arguments, catch_exceptions=False).output
    assert "best-fit" in shown and "29 documents" in shown
    found = json.loads(CliRunner().invoke(command, [*arguments, "--json"]).output)
    stream, first, best = found["packings"]
    assert stream["documents_cut"] > best["documents_cut"] == first["documents_cut"]
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no documents"):
        CliRunner().invoke(
            command, [str(tmp_path), str(tmp_path / "empty.jsonl")], catch_exceptions=False
        )

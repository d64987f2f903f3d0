"""The comparison beyond the trained context: windows, sums, intervals, resume, report."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lmworks.core.errors import UserError
from lmworks.data.documents import Document, write_documents
from lmworks.evaluation import length_extrapolation as module
from lmworks.evaluation.length_extrapolation import (
    LengthExtrapolationConfig,
    LongWindows,
    length_extrapolation,
    long_windows,
)
from lmworks.evaluation.length_report import Measured
from lmworks.tokenizers.train import train_bpe

SENTENCE = "the cat sat on a mat and the dog ran to the door while rain fell on the old roof"


def text(number):
    draw = np.random.default_rng(number)
    return " ".join(draw.choice(SENTENCE.split(), 120))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("length")
    rows = [
        Document(id=f"d{i}", group=f"g{i}", source="", title="", text=text(i)) for i in range(30)
    ]
    (folder / "corpus").mkdir()
    write_documents(folder / "corpus" / "train.jsonl", rows[:20])
    write_documents(folder / "corpus" / "heldout.jsonl", rows[20:])
    train_bpe([row.text for row in rows], vocab_size=300).save(folder / "tokenizer")
    return folder


def config(places, **changes):
    values = {
        "corpus": str(places / "corpus"), "tokenizer": str(places / "tokenizer"), "depth": 1,
        "context_length": 8, "test_length": 32, "num_steps": 3, "batch_size": 4, "seeds": 2,
        "max_windows": 10, "threads": 1,
    }  # fmt: skip
    return LengthExtrapolationConfig(**(values | changes))


def test_windows_are_the_held_out_text(places):
    from lmworks.tokenizers.load import load_tokenizer

    tokenizer = load_tokenizer(places / "tokenizer")
    windows = long_windows(places / "corpus" / "heldout.jsonl", tokenizer, config(places))
    assert windows.ids.shape == (10, 33) and windows.num_bytes.shape == (10, 32)
    whole = long_windows(
        places / "corpus" / "heldout.jsonl", tokenizer, config(places, max_windows=0)
    )
    first = tokenizer.decode(whole.ids[0, 1:].tolist())
    assert text(20).startswith(first) and whole.groups[0] == "g20"
    assert int(whole.num_bytes[0].sum()) == len(first)
    separators = whole.ids[:, 1:] == tokenizer.bos_token_id
    if tokenizer.bos_token_id is None:
        separators = whole.ids[:, 1:] == tokenizer.eos_token_id
    assert separators.any() and (whole.num_bytes[separators] == 0).all()
    assert (whole.num_bytes[~separators] > 0).all()


def test_bits_are_summed_up_by_place_and_paired():
    draw = np.random.default_rng(0)
    sizes = draw.integers(1, 5, (9, 32))
    windows = LongWindows(ids=np.zeros((9, 33)), num_bytes=sizes, groups=np.arange(9).astype(str))
    plain = [draw.random((9, 32)) * sizes for _ in range(3)]
    worse = [bits + 0.5 * sizes * (np.arange(32) >= 8) for bits in plain]
    measured = Measured.of({"rope": plain, "other": worse}, windows, 8)
    assert measured.bins[:3] == [(0, 4), (4, 8), (8, 12)] and len(measured.bins) == 8
    wanted = np.mean([bits[:, 4:8].sum() for bits in plain]) / sizes[:, 4:8].sum()
    assert measured.curve("rope")[1] == pytest.approx(wanted)
    assert np.mean(measured.seed_curves("rope"), axis=0) == pytest.approx(measured.curve("rope"))
    trained, twice, end = measured.regions("other")
    assert (trained.first, trained.last, twice.last, end.first, end.last) == (4, 8, 16, 24, 32)
    assert trained.versus.estimate == pytest.approx(0) and trained.verdict == "no difference shown"
    for region in (twice, end):
        assert region.versus.estimate == pytest.approx(0.5)
        assert region.versus_over_seeds.low == pytest.approx(0.5) and region.verdict == "worse"
    assert measured.regions("rope")[0].versus is None


def test_the_stage_trains_measures_and_goes_on(places, monkeypatch):
    out = places / "report"
    chosen = config(places, schemes=["rope", "alibi"])
    trained = []
    train = module._trained

    def stopped(config, run, tokenizer, scheme, number):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append((scheme, number))
        return train(config, run, tokenizer, scheme, number)

    monkeypatch.setattr(module, "_trained", stopped)
    with pytest.raises(KeyboardInterrupt):
        length_extrapolation(chosen, out)
    monkeypatch.setattr(module, "_trained", lambda *a: trained.append(a[3:]) or train(*a))
    artifact = length_extrapolation(chosen, out)
    assert trained == [("rope", 0), ("rope", 1), ("alibi", 0), ("alibi", 1)]
    report = json.loads((out / "report.json").read_text())
    names = [scheme["name"] for scheme in report["schemes"]]
    assert names[0] == "rope" and names[-1] == "alibi" and "rope, yarn" in names
    assert all(len(s["curve"]) == 8 and len(s["seeds"]) == 2 for s in report["schemes"])
    assert report["summary"] == artifact.metrics["summary"]
    page = (out / "report.html").read_text()
    assert "<script" not in page and page.count("<polyline") == len(names)
    again = length_extrapolation(chosen, places / "again")
    assert again.manifest["sha256"] == artifact.manifest["sha256"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schemes": ["rop"]}, "did you mean 'rope'"),
        ({"schemes": ["rope", "rope"]}, "name each once"),
        ({"test_length": 33}, "multiple of context_length"),
        ({"test_length": 80_000}, "fewer than one window"),
        ({"seeds": 0}, "at least one model"),
    ],
)
def test_what_can_not_be_measured_is_told(places, changes, words):
    with pytest.raises(UserError, match=words):
        length_extrapolation(config(places, **changes), places / "wrong")

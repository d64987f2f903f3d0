"""The stage: folders in, a report folder out, made anew only when an input changes."""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pytest

from lmworks.core.errors import UserError
from lmworks.evaluation.bits_per_byte import EvaluateConfig, evaluate


def _write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folders(tmp_path, tokenizer, make_decoder):
    """A corpus, questions, and a model before and after some change of its weights."""
    from lmworks.models.save import save_model

    random = np.random.default_rng(0)
    words = ["the", "a", "dog", "fox", "line", "page", "end", "of", "over", "again"]
    rows = [
        {
            "id": f"d{index}",
            "group": f"g{index % 10}",
            "source": "made",
            "title": "",
            "text": " ".join(random.choice(words, 30)),
        }
        for index in range(40)
    ]
    for name in ("corpus", "questions"):
        (tmp_path / name).mkdir()
    _write_rows(tmp_path / "corpus" / "train.jsonl", rows[:20])
    _write_rows(tmp_path / "corpus" / "heldout.jsonl", rows[20:])
    messages = [{"role": "user", "content": "dog?"}, {"role": "assistant", "content": "the fox"}]
    questions = [{"id": str(i), "document": f"d{i}", "messages": messages} for i in range(8)]
    _write_rows(tmp_path / "questions" / "heldout.jsonl", questions)
    for seed, name in enumerate(("base", "chat")):
        model = make_decoder(vocab_size=tokenizer.vocab_size, context=32, seed=seed)
        save_model(model, tmp_path / name, tokenizer=tokenizer)
    return tmp_path


def _config(folders, **more):
    return EvaluateConfig(
        corpus=str(folders / "corpus"), model=str(folders / "base"), threads=1, **more
    )


def test_writes_a_report_of_every_step(folders):
    config = _config(folders, chat=str(folders / "chat"), questions=str(folders / "questions"))
    artifact = evaluate(config, folders / "report")
    data = json.loads((folders / "report" / "report.json").read_text())
    documents, answers = data["gains"]
    names = [row["name"] for row in documents["rows"]]
    assert names == ["Best n-gram", "Untrained", "Pre-trained", "Tuned"]
    assert [row["name"] for row in answers["rows"]] == names[1:]
    assert documents["rows"][3]["previous"] == "Pre-trained"
    assert documents["rows"][0]["bits_per_byte"]["estimate"] < 3
    assert artifact.kind == "report"
    assert artifact.metrics["bits_per_byte"]["Tuned"] == pytest.approx(
        documents["rows"][3]["bits_per_byte"]["estimate"]
    )
    assert data["summary"] in (folders / "report" / "report.html").read_text()
    assert "than the best n-gram" in artifact.metrics["summary"]


def test_is_kept_until_a_model_changes(folders, make_decoder, tokenizer):
    from lmworks.models.save import save_model

    config = _config(folders, ngram=False, untrained=False)
    first = evaluate(config, folders / "report")
    assert evaluate(config, folders / "report").cached
    save_model(
        make_decoder(vocab_size=tokenizer.vocab_size, context=32, seed=9),
        folders / "base",
        tokenizer=tokenizer,
    )
    second = evaluate(config, folders / "report", replace=True)
    assert not second.cached
    assert second.metrics["bits_per_byte"] != first.metrics["bits_per_byte"]


def test_fewer_documents_are_a_fixed_draw(folders):
    config = _config(folders, ngram=False, untrained=False, max_documents=7)
    one = evaluate(config, folders / "one")
    two = evaluate(config, folders / "two")
    assert one.manifest["sha256"] == two.manifest["sha256"]
    other = evaluate(dataclasses.replace(config, seed=1), folders / "other")
    assert other.metrics["bits_per_byte"] != one.metrics["bits_per_byte"]


def test_figures_of_training_come_along(folders):
    history = {"loss": [3.0, 2.0], "grad_norm": [1, 1], "heldout_step": [2], "heldout_loss": [2.5]}
    (folders / "base" / "history.json").write_text(json.dumps(history))
    manifest = {
        "kind": "model",
        "stage": "pretrain",
        "fingerprint": "f",
        "sha256": "a" * 64,
        "config": {"depth": 2},
        "inputs": {"corpus": {"reference": "x", "sha256": "b" * 64}},
        "metrics": {"targets_per_s": 512.0},
        "seconds": 12.0,
        "peak_memory_bytes": 10**8,
    }
    (folders / "base" / "lmworks.json").write_text(json.dumps(manifest))
    evaluate(_config(folders, ngram=False, untrained=False), folders / "report")
    data = json.loads((folders / "report" / "report.json").read_text())
    assert [curve["y"] for curve in data["curves"][0]["curves"]] == [[3.0, 2.0], [2.5]]
    assert data["costs"][0]["per_second"] == 512.0 and data["costs"][0]["artifact_bytes"] > 1000
    assert data["lineage"][0]["inputs"] == {"corpus": "b" * 64}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"corpus": "questions", "ngram": True}, "train.jsonl is missing"),
        ({"questions": "corpus2"}, "neither a file or folder here"),
        ({"questions": "base"}, "heldout.jsonl is missing"),
        ({"max_documents": -1}, "max_documents = -1"),
    ],
)
def test_bad_input_is_one_line(folders, change, words):
    values = {
        name: str(folders / value) if isinstance(value, str) else value
        for name, value in change.items()
    }
    config = dataclasses.replace(_config(folders), **values)
    if values.get("corpus"):
        row = {"id": "x", "group": "g", "source": "s", "title": "", "text": "dog"}
        _write_rows(folders / "questions" / "heldout.jsonl", [row])
    with pytest.raises(UserError, match=words) as error:
        evaluate(config, folders / "report")
    assert "\n" not in str(error.value)


def test_the_config_loads_no_torch():
    import subprocess

    code = "import sys, lmworks.evaluation.bits_per_byte; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

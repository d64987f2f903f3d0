from __future__ import annotations

import json

import pytest

from lmworks.core.errors import UserError
from lmworks.evaluation.speculation import SpeculationConfig, speculation
from lmworks.models.save import save_model

PROMPTS = [
    {"prompt": "the end of the line and the end of the line and", "kind": "copy"},
    {"prompt": "The quick brown fox jumps over"},
    {"messages": [{"role": "user", "content": "over the lazy dog"}], "kind": "copy"},
]


@pytest.fixture
def model(tokenizer, make_decoder, tmp_path):
    save_model(make_decoder(vocab_size=tokenizer.vocab_size, context=1024), tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    return path


def run(model, tmp_path, **settings):
    config = SpeculationConfig(model=str(model), **{"max_tokens": 12, "always": True} | settings)
    return speculation(config, tmp_path / "report", replace=True)


def test_every_way_beside_plain_decoding(model, prompts, tmp_path):
    made = run(
        model, tmp_path, prompts=str(prompts), ways=["lookup", "early-exit=1", f"draft={model}"]
    )
    rows = json.loads((made.path / "speculation.json").read_text())["rows"]
    assert [(row["way"], row["prompts"], row["num_prompts"]) for row in rows[:2]] == [
        ("lookup", "all", 3),
        ("lookup", "copy", 2),
    ]
    assert all(row["same_answers"] == row["num_prompts"] for row in rows)
    itself = next(row for row in rows if row["way"].startswith("draft") and row["prompts"] == "all")
    assert itself["acceptance"] == 1.0  # the draft is the model
    assert itself["tokens_per_step"] > 4 and itself["speed_up"] > 0
    report = (made.path / "report.md").read_text()
    assert report.count("\n| ") == len(rows) + 1


def test_its_own_prompts_at_a_temperature(model, tmp_path):
    made = run(model, tmp_path, temperature=0.9, max_prompts=0, max_tokens=4, ways=["lookup"])
    rows = json.loads((made.path / "speculation.json").read_text())["rows"]
    assert rows[0]["num_prompts"] == 9 and rows[0]["same_answers"] is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"ways": ["lokup"]}, "did you mean 'lookup'"),
        ({"ways": []}, "a way to guess"),
        ({"rounds": 0}, "a round"),
        ({"max_tokens": 1}, "two tokens"),
    ],
)
def test_bad_settings_are_told(model, prompts, tmp_path, settings, told):
    with pytest.raises(UserError, match=told):
        run(model, tmp_path, prompts=str(prompts), **settings)


@pytest.mark.parametrize("text", ["", "{", '{"text": "x"}', "[1]"])
def test_bad_prompts_are_told(model, tmp_path, text):
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=r"prompts\.jsonl"):
        run(model, tmp_path, prompts=str(path))

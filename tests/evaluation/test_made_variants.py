from __future__ import annotations

import json

import pytest

from lmworks.core.errors import UserError
from lmworks.evaluation.made_variants import folder_of, make_variant, settings_of, type_of
from lmworks.evaluation.quality_speed import AnalyzeConfig, analyze


@pytest.mark.parametrize(
    ("word", "settings"),
    [
        ("Q4_K", {"type": "Q4_K"}),
        ("Q4_K:gptq", {"type": "Q4_K", "method": "gptq"}),
        ("4.5bpw", {"target_bpw": 4.5}),
        ("80MB:solve", {"target_size": "80MB", "method": "solve"}),
    ],
)
def test_a_word_is_settings_of_quantize(word, settings):
    assert settings_of(word) == settings
    assert "/" not in folder_of(word) and ":" not in folder_of(word)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("Q4_X", "type 'Q4_X'"),
        ("Q4_K:gptx", "did you mean 'gptq'"),
        ("MB", "type 'MB'"),
        ("", "type ''"),
        ("0MB", "above zero"),
        ("../../x", "type"),
    ],
)
def test_a_word_that_is_none_is_told(word, said):
    with pytest.raises(UserError, match=said):
        settings_of(word)


def test_a_forecast_needs_a_type_alone():
    assert type_of("Q5_K") == "Q5_K"
    with pytest.raises(UserError, match="name a type alone"):
        type_of("Q5_K:gptq")


def test_a_method_stands_beside_rounding_in_the_analysis(reference, texts_file, tmp_path):
    config = AnalyzeConfig(
        reference=str(reference),
        text=str(texts_file),
        calibration=str(texts_file),
        types=["Q4_0", "Q4_0:solve"],
        rounds=0,
        max_questions=0,
        keep="all",
    )
    made = analyze(config, tmp_path / "analysis")
    rows = {
        row["name"]: row
        for row in json.loads((made.path / "analysis.json").read_text())["variants"]
    }
    assert rows["Q4_0:solve"]["path"] == "models/Q4_0-solve"
    assert (made.path / "models" / "Q4_0-solve" / "model.gguf").is_file()
    assert 0 < rows["Q4_0:solve"]["kl"]["estimate"] < rows["Q4_0"]["kl"]["estimate"]
    again = make_variant(reference, "Q4_0:solve", tmp_path / "made", calibration=str(texts_file))
    assert (again / "model.gguf").read_bytes() == (
        made.path / "models" / "Q4_0-solve" / "model.gguf"
    ).read_bytes()

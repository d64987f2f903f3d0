"""The weights of an ensemble: what is chosen is the best of the grid, and judged on other texts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch

from lmworks.core.errors import UserError
from lmworks.evaluation.fit_ensemble import (
    FitEnsembleConfig,
    _bits,
    candidates,
    fit,
    fit_ensemble,
    sentence,
)
from lmworks.evaluation.sample_texts import SampleTexts
from lmworks.inference.chat import load_chat
from lmworks.models.ensemble import EnsembleModel
from lmworks.models.save import save_model


def sampled(tokenizer: Any, count: int = 8) -> SampleTexts:
    texts = [text[:120] for _, text in sorted(topics.items())[:count]]
    rows = tuple(np.array([0, *tokenizer.encode(text)], dtype=np.int64) for text in texts)
    sizes = np.array([len(text.encode()) for text in texts])
    groups = np.array([f"g{i // 2}" for i in range(count)])
    return SampleTexts(texts=tuple(texts), rows=rows, num_bytes=sizes, groups=groups)


def test_every_candidate_costs_what_its_ensemble_says(make_decoder: Any, tokenizer: Any) -> None:
    size = tokenizer.vocab_size
    models = [make_decoder(size, 256, seed=1), make_decoder(size + 5, 256, seed=2)]
    texts = sampled(tokenizer, 4)
    known = candidates(["a", "b"])
    assert [spec.weights for spec in known[:2]] == [[1, 0], [0, 1]] and len(known) == 20
    bits = _bits(models, texts, known)
    for number in (0, 1, 6, 15):
        together = EnsembleModel(models, known[number])
        for row, found in zip(texts.rows, bits[number], strict=True):
            with torch.no_grad():
                logits = together(torch.from_numpy(row[None, :-1]))[0]
            nats = torch.nn.functional.cross_entropy(
                logits, torch.from_numpy(row[1:]), reduction="sum"
            )
            assert found == pytest.approx(float(nats) / math.log(2), rel=1e-4)


def test_the_best_of_one_half_is_judged_on_the_other(
    make_decoder: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, known = sampled(tokenizer), candidates(["a", "b"])
    first = np.isin(
        texts.groups,
        np.random.default_rng(0).permutation(np.unique(texts.groups))[:2],
    )
    bits = np.full((len(known), 8), 100.0)
    bits[7, first], bits[9, ~first] = 50.0, 10.0  # the second would be chosen by who peeks
    monkeypatch.setattr("lmworks.evaluation.fit_ensemble._bits", lambda *told: bits)
    found = fit([None, None], texts, ["a", "b"])  # type: ignore[list-item]
    assert found.spec == known[7]
    assert found.bits_per_byte.estimate == pytest.approx(400 / texts.num_bytes[~first].sum())
    assert found.gains[0].estimate == 0 and "no better" in sentence(found, ["a", "b"])


def test_the_stage_makes_what_can_be_talked_to(
    make_decoder: Any, tokenizer: Any, tmp_path: Path
) -> None:
    for seed, name in enumerate(("one", "two")):
        save_model(make_decoder(tokenizer.vocab_size, 256, seed=seed), tmp_path / name)
        tokenizer.save(tmp_path / name)
    rows = [{"text": text[:400]} for _, text in sorted(topics.items())[:8]]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = FitEnsembleConfig(
        models=[str(tmp_path / "one"), str(tmp_path / "two")], text=str(tmp_path / "texts.jsonl")
    )
    made = fit_ensemble(given, tmp_path / "both")
    told = (tmp_path / "both/ensemble.yaml").read_text()
    assert "../one" in told and str(tmp_path) not in told
    assert sum(made.metrics["weights"]) == pytest.approx(1)
    chat: Any = load_chat(made.path, max_batch=1)
    assert chat.complete_text("abc", temperature=0, max_tokens=3).completion_tokens >= 1
    chat.close()
    for bad, told in (({"models": [str(tmp_path / "one")]}, "from 2 to 4 times"),):
        with pytest.raises(UserError, match=told):
            fit_ensemble(FitEnsembleConfig(**bad), tmp_path / "bad")
    (tmp_path / "texts.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(UserError, match="too few for two halves"):
        fit_ensemble(given, tmp_path / "few")

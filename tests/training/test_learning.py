"""`pretrain` with each objective: a model that loads, the same batches after a kill, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmworks.core.errors import UserError
from lmworks.models.config.patterns import Sizes, encoder_config
from lmworks.models.generator_discriminator import GeneratorDiscriminator
from lmworks.models.load import load_language_model, load_model
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.reserved import mask_token_id, sentinel_ids, with_reserved
from lmworks.tokenizers.train import train_bpe
from lmworks.training.learning import PRETRAINING, build_model, objective_for, prepare
from lmworks.training.objectives.base import OBJECTIVES
from lmworks.training.pretrain import PretrainConfig, Shape, pretrain
from lmworks.training.tokens import PackedWindows
from lmworks.training.trainer_config import LoopConfig

TEXT = "the cat sat on the mat and the dog ran far away from it while nobody saw a thing. "


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve short documents in a corpus, and a tokenizer beside it."""
    folder = tmp_path_factory.mktemp("corpus")
    for name, count in (("train", 12), ("heldout", 3)):
        rows = [
            {"id": f"{name}{i}", "group": str(i), "source": "test", "title": ""}
            | {"text": TEXT * (2 + i % 3)}
            for i in range(count)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    train_bpe([TEXT], vocab_size=300).save(folder / "tokenizer")
    return folder


def config(corpus: Path, **changes: Any) -> PretrainConfig:
    plain: dict[str, Any] = {
        "corpus": str(corpus),
        "tokenizer": str(corpus / "tokenizer"),
        "depth": 1,
        "context_length": 24,
        "num_steps": 3,
        "batch_size": 2,
        "shape": Shape(hidden_size=32),
        "threads": 1,
    }
    return PretrainConfig(**plain | changes)


@pytest.mark.parametrize(
    ("objective", "architecture", "packing"),
    [
        *((name, "auto", "stream") for name in PRETRAINING),
        ("span_corruption", "decoder", "stream"),
        ("causal", "auto", "documents"),
        ("replaced_token", "auto", "documents"),
    ],
)
def test_a_model_that_loads(
    corpus: Path, tmp_path: Path, objective: str, architecture: Any, packing: Any
) -> None:
    settings = config(corpus, objective=objective, architecture=architecture, packing=packing)
    made = pretrain(settings, tmp_path / "model")
    model, tokenizer = load_model(made.path), load_tokenizer(made.path)
    assert model.config.vocab_size == tokenizer.vocab_size
    assert np.isfinite(made.metrics["heldout_loss"])
    ids = torch.tensor([tokenizer.encode(TEXT)[:20]])
    if objective == "replaced_token":
        assert model(ids).shape == ids.shape
        assert made.metrics["heldout_judged_right"] > 0
        generator = load_model(made.path / "generator")
        assert torch.equal(generator.embed_tokens.weight, model.embed_tokens.weight)
        assert generator.config.hidden_size <= model.config.hidden_size
    elif model.config.encoder is not None:
        assert model(ids, encoded=model.encode(ids)).shape == (1, 20, tokenizer.vocab_size)
    else:
        assert model(ids).shape == (1, 20, tokenizer.vocab_size)
    if objective in ("causal", "prefix", "permutation"):
        load_language_model(made.path)
    else:
        assert architecture == "decoder" or not _continues(made.path)


def _continues(folder: Path) -> bool:
    try:
        load_language_model(folder)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("name", PRETRAINING)
def test_batches_depend_on_seed_and_step_alone(corpus: Path, name: str) -> None:
    settings = config(corpus, objective=name, context_length=60)
    learning = prepare(settings, load_tokenizer(corpus / "tokenizer"))
    tokens = np.random.default_rng(0).integers(10, 200, 2000)

    def batches(seed: int) -> Any:
        windows = PackedWindows(tokens, context_length=60, batch_size=4, seed=3)
        return learning.batches(windows, seed)

    one, other = batches(3), batches(3)
    expected = [one(step) for step in (0, 1, 2)]
    for step in (2, 0, 1):
        again = other(step)
        assert torch.equal(again.input_ids, expected[step].input_ids)
        assert torch.equal(again.labels, expected[step].labels)
        for key, value in again.inputs.items():
            assert torch.equal(value, expected[step].inputs[key])
    if name != "causal":
        assert not torch.equal(batches(4)(0).labels, expected[0].labels)


def test_every_objective_of_text_is_in_the_table() -> None:
    assert set(PRETRAINING) <= set(OBJECTIVES)


def test_tokens_that_are_missing_are_put_behind_the_others(corpus: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(corpus / "tokenizer")
    more = with_reserved(tokenizer, mask=True, num_sentinels=3)
    assert mask_token_id(tokenizer) is None
    assert mask_token_id(more) == tokenizer.vocab_size
    first = tokenizer.vocab_size + 1
    assert sentinel_ids(more) == [first, first + 1, first + 2]
    assert more.encode(TEXT + "<|mask|>") == tokenizer.encode(TEXT + "<|mask|>")
    assert more.encode("<|mask|>", allow_special=True) == [tokenizer.vocab_size]
    more.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert sentinel_ids(again) == sentinel_ids(more)
    assert with_reserved(again, mask=True, num_sentinels=2) is again
    assert sentinel_ids(with_reserved(again, num_sentinels=5))[:3] == sentinel_ids(more)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objective": "maskd"}, "did you mean 'masked'"),
        (
            {"objective": "masked", "architecture": "decoder"},
            "but by encoder; decoder can learn ca",
        ),
        ({"objective": "masked", "layers": "mamba"}, "mamba can't: choose layers among attention"),
        ({"objective": "prefix", "layers": "gla"}, "honour visible, which gated_linear_attention"),
        ({"objective": "permutation", "layers": "rwkv"}, "positions and visible, which rwkv_time"),
        ({"objective": "span_corruption", "packing": "documents"}, "one text for each row"),
        ({"objective": "masked", "settings": {"shar": 0.1}}, "did you mean 'share'"),
        ({"objective": "causal", "settings": {"share": 0.1}}, "causal has no settings"),
        ({"objective": "masked", "loop": LoopConfig(sample_every=5)}, "only a decoder continues"),
        ({"context_length": 100_000}, "fewer than one window of 100001"),
        ({"objective": "span_corruption", "context_length": 1}, "too short to take spans out"),
    ],
)
def test_what_does_not_go_together(
    corpus: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        pretrain(config(corpus, **changes), tmp_path / "model")


def test_objectives_that_do_not_learn_from_text_are_told_apart(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OBJECTIVES, "other", "nowhere:at_all")
    with pytest.raises(UserError, match="other does not learn from plain text"):
        objective_for(config(corpus, objective="other"))


def test_sizes_of_two_that_learn_together(corpus: Path) -> None:
    model = build_model(config(corpus, objective="replaced_token", shape=Shape()), 300)
    assert isinstance(model, GeneratorDiscriminator)
    assert model.generator.embed_tokens is model.discriminator.embed_tokens
    sizes = Sizes(hidden_size=64)
    with pytest.raises(UserError, match="ends in a vocabulary"):
        GeneratorDiscriminator(model.generator.config, model.generator.config)
    small = encoder_config("attention", depth=1, vocab_size=300, sizes=Sizes(hidden_size=32))
    with pytest.raises(UserError, match="share their embeddings"):
        GeneratorDiscriminator(small, model.discriminator.config)
    assert model.discriminator.config.hidden_size == sizes.hidden_size

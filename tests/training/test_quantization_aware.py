"""QAT and kept zeros: what is exported is what was trained, and it pays."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from lmworks.compression.quantize import QuantizeConfig, encode, quantize
from lmworks.compression.sparsify import sparsify_model
from lmworks.compression.sparsity import sparsity_of
from lmworks.core.errors import UserError
from lmworks.core.gguf import dequantize
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
from lmworks.models.load import load_language_model
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.tokenizers.train import train_bpe
from lmworks.training.callbacks.keep_zeros import KeepZeros
from lmworks.training.objectives.causal import causal
from lmworks.training.quantization_aware import rounded_weights
from lmworks.training.trainer import Trainer
from lmworks.training.trainer_config import LoopConfig


def made(tied: bool = True) -> Model:
    config = ModelConfig.uniform(
        vocab_size=40, hidden_size=32, num_hidden_layers=2,
        mixer=AttentionConfig(num_attention_heads=2, num_key_value_heads=1, head_dim=16),
        feed_forward=MLPConfig(intermediate_size=64), max_position_embeddings=64,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = Model(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    return model


def exported(model: Model, kind: str) -> Model:
    """The model as a file of the type gives it back."""
    other = copy.deepcopy(model)
    for name, parameter in other.named_parameters():
        tensor = encode(name, parameter.detach().numpy(), kind)
        with torch.no_grad():
            parameter.copy_(torch.tensor(dequantize(tensor)))
    return other


IDS = torch.randint(0, 40, (3, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0"])
def test_a_forward_is_that_of_the_file(kind: str, tied: bool) -> None:
    model = made(tied)
    plain = model(IDS)
    with rounded_weights(model, kind):
        rounded = model(IDS)
    assert torch.equal(rounded, exported(model, kind)(IDS))
    assert not torch.equal(rounded, plain)
    assert torch.equal(model(IDS), plain)
    assert set(model.state_dict()) == set(made(tied).state_dict())


def test_the_stage_writes_what_was_seen(tmp_path: Path) -> None:
    """Through the files: a folder of float32, `compress quantize`, and the loader."""
    tokenizer = train_bpe(
        ["the cat sat on the mat and the dog sat on the cat\n"] * 20, vocab_size=288
    )
    config = dataclasses.replace(made().config, vocab_size=tokenizer.vocab_size)
    model = Model(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    save_model(model, tmp_path / "model", tokenizer=tokenizer)
    with rounded_weights(model, "Q4_0"), torch.inference_mode():
        seen = model(IDS)
    quantize(QuantizeConfig(model=str(tmp_path / "model"), type="Q4_0"), tmp_path / "file")
    with torch.inference_mode():
        assert torch.equal(load_language_model(tmp_path / "file")(IDS), seen)


def test_gradients_go_straight_through() -> None:
    model = made()
    file = exported(model, "Q4_0")
    with rounded_weights(model, "Q4_0"):
        model(IDS).square().mean().backward()
    file(IDS).square().mean().backward()
    for (name, ours), theirs in zip(model.named_parameters(), file.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7, msg=name)


def test_changes_that_bypass_versions_are_seen() -> None:
    model = made()
    with rounded_weights(model, "Q4_0"):
        model(IDS)
        model.layers[0].mixer.q_proj.weight.data.mul_(1.5)
        seen = model(IDS)
    assert torch.equal(seen, exported(model, "Q4_0")(IDS))


def trained(model: Model, tmp_path: Path, num_steps: int = 40, **loop: object) -> float:
    """Loss of the exported model after some steps on a text with a rule and noise."""
    random = np.random.default_rng(0)
    steps = random.choice([3, 7], (64, 24), p=[0.3, 0.7])  # so that the loss can't reach 0
    ids = torch.from_numpy((random.integers(0, 40, (64, 1)) + steps.cumsum(1)) % 40)

    def batches(number: int) -> object:
        from lmworks.training.batches import Batch

        rows = ids[number * 8 % 64 : number * 8 % 64 + 8]
        return Batch(input_ids=rows[:, :-1], labels=rows[:, 1:])

    config = LoopConfig(warmup_steps=2, eval_every=1000, **loop)  # type: ignore[arg-type]
    callbacks = [KeepZeros(model)] if config.keep_zeros else []
    with rounded_weights(model, config.qat):
        Trainer(
            model,
            causal,
            batches,
            config,
            num_steps=num_steps,
            work=tmp_path,
            seed=0,
            checkpoint_every_s=1e9,
            callbacks=callbacks,
        ).fit("training")  # type: ignore[arg-type]
    with torch.no_grad():
        return float(causal(exported(model, "Q4_0").eval(), batches(0)).value)  # type: ignore[arg-type]


def test_the_exported_model_is_better_for_it(tmp_path: Path) -> None:
    base = made()
    trained(base, tmp_path / "base", 40)
    with torch.no_grad():  # a number in each block that takes the others' steps away
        for layer in base.layers:
            layer.feed_forward.up_proj.weight[:, ::32] += 1
            layer.mixer.v_proj.weight[:, ::32] += 1
    plain = trained(copy.deepcopy(base), tmp_path / "plain")
    aware = trained(copy.deepcopy(base), tmp_path / "aware", qat="Q4_0")
    assert aware < plain


def test_zeros_stay(tmp_path: Path) -> None:
    model = made()
    sparsify_model(model, (2, 4), "magnitude", [])
    before = {name: p.detach() == 0 for name, p in model.named_parameters()}
    trained(model, tmp_path, keep_zeros=True)
    for name, parameter in model.named_parameters():
        if "proj" in name:
            assert torch.equal(parameter.detach() == 0, before[name]), name
            assert sparsity_of(parameter) == 0.5
    with pytest.raises(UserError, match="compress sparsify"):
        KeepZeros(made())


def test_what_can_not_be_rounded_is_told() -> None:
    model = made()
    for kind, expected in (("Q4_K", "blocks of 256"), ("IQ1_S", "can't be written")):
        with pytest.raises(UserError, match=expected), rounded_weights(model, kind):
            pass
    model.layers.requires_grad_(False)
    with pytest.raises(UserError, match="adapter"), rounded_weights(model, "Q4_0"):
        pass

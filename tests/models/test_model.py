"""The forward's shapes, its initial weights and its errors."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from lmworks.core.errors import UserError
from lmworks.models.base import BLOCKS, build_block
from lmworks.models.config import AttentionConfig, ModelConfig, RoPEConfig
from lmworks.models.model import Model


def test_last_only_is_the_last_of_all(tiny_model: Model, token_ids: torch.Tensor) -> None:
    logits = tiny_model(token_ids)
    assert logits.shape == (3, 40, 97)
    assert logits.dtype == torch.float32
    last = tiny_model(token_ids, last_only=True)
    assert last.shape == (3, 1, 97)
    assert torch.allclose(last, logits[:, -1:], atol=1e-6)


def test_hidden_states_and_logits_are_the_forward(
    tiny_model: Model, token_ids: torch.Tensor
) -> None:
    hidden = tiny_model.hidden_states(token_ids)
    assert hidden.shape == (3, 40, 48)
    assert torch.equal(tiny_model.logits(hidden), tiny_model(token_ids))


def test_no_position_sees_a_later_one(tiny_model: Model, token_ids: torch.Tensor) -> None:
    changed = token_ids.clone()
    changed[:, 25:] = 0
    before, after = tiny_model(token_ids), tiny_model(changed)
    assert torch.allclose(before[:, :25], after[:, :25], atol=1e-6)
    assert not torch.allclose(before[:, 25:], after[:, 25:], atol=1e-3)


def test_padding_is_not_seen_in_any_precision(tiny_model: Model, token_ids: torch.Tensor) -> None:
    """A mask of float32 beside states of float64 was once read as something else."""
    model = copy.deepcopy(tiny_model).double()
    mask = torch.ones_like(token_ids)
    mask[0, -3:] = 0
    with torch.no_grad():
        padded, plain = model(token_ids, attention_mask=mask), model(token_ids)
    torch.testing.assert_close(padded[1:], plain[1:])
    torch.testing.assert_close(padded[0, :-3], plain[0, :-3])


def test_same_seed_same_weights(tiny_config: ModelConfig) -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        model = Model(tiny_config)
        model.reset_parameters(torch.Generator().manual_seed(seed))
        return model.state_dict()

    first, again, other = drawn(7), drawn(7), drawn(8)
    assert all(torch.equal(first[name], again[name]) for name in first)
    matrices = [name for name in first if first[name].dim() == 2]
    assert not any(torch.equal(first[name], other[name]) for name in matrices)


def test_the_spread_of_fresh_weights(tiny_config: ModelConfig) -> None:
    mixer = dataclasses.replace(tiny_config.layers[0].mixer, head_dim=64, bias="qkvo")
    model = Model(dataclasses.replace(tiny_config, hidden_size=256).with_layers(mixer=mixer))
    model.reset_parameters(torch.Generator().manual_seed(0))
    for name, tensor in model.state_dict().items():
        if name.endswith("norm.weight"):
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        elif name.endswith("bias"):
            assert not tensor.any(), name
        else:
            into_residual = "o_proj" in name or "down_proj" in name
            expected = 0.02 / (2 * 2) ** 0.5 if into_residual else 0.02
            assert tensor.std().item() == pytest.approx(expected, rel=0.05), name


def test_tied_weights_learn_from_both_ends(
    tiny_config: ModelConfig, token_ids: torch.Tensor
) -> None:
    model = Model(dataclasses.replace(tiny_config, tie_word_embeddings=True))
    assert model.lm_head is None
    model.reset_parameters(torch.Generator().manual_seed(0))
    F.cross_entropy(model(token_ids).flatten(0, 1), token_ids.flatten()).backward()
    gradient = model.embed_tokens.weight.grad
    assert gradient is not None
    unseen = sorted(set(range(97)) - set(token_ids.flatten().tolist()))
    assert unseen
    assert gradient[unseen].abs().sum() > 0


def test_a_copy_is_independent(tiny_model: Model, token_ids: torch.Tensor) -> None:
    before = tiny_model(token_ids)
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        other.embed_tokens.weight.zero_()
    assert torch.equal(tiny_model(token_ids), before)


def test_training_works_after_a_forward_in_inference_mode(
    tiny_config: ModelConfig, token_ids: torch.Tensor
) -> None:
    mixer = dataclasses.replace(
        tiny_config.layers[0].mixer, rope=RoPEConfig(theta=777.0)
    )  # a rotary table that no other test has made
    model = Model(tiny_config.with_layers(mixer=mixer))
    model.reset_parameters(torch.Generator().manual_seed(0))
    with torch.inference_mode():
        model(token_ids)
    model(token_ids).sum().backward()
    assert model.embed_tokens.weight.grad is not None


def test_an_id_outside_the_vocabulary_is_one_line(tiny_model: Model) -> None:
    with pytest.raises(UserError, match="from -1 to 3 do not fit the vocabulary of 97"):
        tiny_model(torch.tensor([[3, -1]]))


def test_every_block_of_the_table_exists() -> None:
    from lmworks.core.tables import load_target

    assert all(isinstance(load_target(target), type) for target in BLOCKS.values())


def test_an_unknown_block_names_the_nearest(tiny_config: ModelConfig) -> None:
    class AtentionConfig(AttentionConfig):
        kind = "atention"

    part = AtentionConfig(num_attention_heads=1, num_key_value_heads=1, head_dim=2)
    with pytest.raises(UserError, match="unknown block 'atention': did you mean 'attention'"):
        build_block(part, tiny_config)

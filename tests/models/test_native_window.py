"""A stretched model within its native window, past it, and in the files of others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import architecture_of
from lmworks.models.cache import KVCache
from lmworks.models.config import (
    AttentionConfig,
    DynamicNTKScaling,
    LongRoPEScaling,
    MLPConfig,
    ModelConfig,
    NativeWindow,
    RoPEConfig,
    SlidingWindow,
    YaRNScaling,
)
from lmworks.models.context_scaling import METHODS, extended
from lmworks.models.extend_context import ExtendContextConfig, extend_context
from lmworks.models.load import load_model, open_weights
from lmworks.models.model import Model
from lmworks.models.positions import shared_rotary
from lmworks.models.skeleton import skeleton

NATIVE = 20


def native_model(num_layers: int = 1, window: int = 0) -> Model:
    """Without a scaling; weights so large that positions matter."""
    config = ModelConfig.uniform(
        vocab_size=31,
        hidden_size=16,
        num_hidden_layers=num_layers,
        mixer=AttentionConfig(
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            rope=RoPEConfig(theta=50.0),
            pattern=SlidingWindow(window=window) if window else None,
        ),
        feed_forward=MLPConfig(intermediate_size=16),
        max_position_embeddings=NATIVE,
    )
    model = Model(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.2, 0.6, generator=generator)
    return model.eval()


def stretched(model: Model, **how: Any) -> Model:
    longer = skeleton(extended(model.config, **({"factor": 4.0} | how)))
    longer.load_state_dict(model.state_dict(), assign=True)
    return longer.eval()


@pytest.fixture(scope="module")
def token_ids() -> torch.Tensor:
    return torch.randint(0, 31, (1, 80), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", [m for m in METHODS if m != "none"])
def test_within_the_native_window_nothing_changes_and_beyond_it_something_does(
    method: str, token_ids: torch.Tensor
) -> None:
    plain = native_model(2)
    model = stretched(plain, method=method)
    with torch.no_grad():
        for length in (1, 13, NATIVE):
            assert torch.equal(model(token_ids[:, :length]), plain(token_ids[:, :length]))
        assert not torch.allclose(model(token_ids[:, :21]), plain(token_ids[:, :21]), atol=1e-3)
        caches = [KVCache(m.config, 1, NATIVE).view([0]) for m in (plain, model)]
        for start, end in ((0, 9), (9, 19), (19, 20)):
            ids = token_ids[:, start:end]
            assert torch.equal(plain(ids, cache=caches[0]), model(ids, cache=caches[1]))


@pytest.mark.parametrize(("kind", "far"), [("f16", 2e-2), ("q8_0", 0.3)])
def test_keys_that_are_held_smaller_are_turned_too(
    kind: str, far: float, token_ids: torch.Tensor
) -> None:
    plain = native_model()
    mixer = dataclasses.replace(plain.config.layers[0].mixer, head_dim=32)  # type: ignore[type-var]
    config = plain.config.with_layers(mixer=mixer)
    model = Model(extended(config, factor=4.0))
    model.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
        cache = KVCache(model.config, 1, 80, cache_type=kind)
        model.eval()(token_ids[:, :18], cache=cache.view([0]))
        got = model(token_ids[:, 18:22], cache=cache.view([0]), last_only=True)
        right = model(token_ids[:, :22], last_only=True)
        unturned = KVCache(model.config, 1, 80, cache_type=kind)
        model(token_ids[:, :18], cache=unturned.view([0]))
        unturned.regimes[0] = 1  # as if they had been turned
        wrong = model(token_ids[:, 18:22], cache=unturned.view([0]), last_only=True)
    assert (got - right).abs().max() < far * right.abs().max()
    assert (got - right).norm() < 0.5 * (wrong - right).norm()


@pytest.mark.parametrize("window", [0, 7, 27])
@pytest.mark.parametrize("ladder", [False, True])
def test_keys_follow_when_a_sequence_passes_a_bound(
    window: int, ladder: bool, token_ids: torch.Tensor
) -> None:
    # In a model of one layer nothing else is kept of earlier positions.
    native = NativeWindow(length=NATIVE, rope=RoPEConfig(theta=50.0))
    scaling = YaRNScaling(factor=4.0, original_max_position_embeddings=NATIVE)
    rope = RoPEConfig(theta=50.0, scaling=scaling, native=native)
    if ladder:
        half = dataclasses.replace(rope, scaling=dataclasses.replace(scaling, factor=2.0))
        rope = dataclasses.replace(rope, native=NativeWindow(length=40, rope=half))
    config = native_model(window=window).config
    mixer = dataclasses.replace(config.layers[0].mixer, rope=rope)  # type: ignore[type-var]
    layer = dataclasses.replace(config.layers[0], mixer=mixer)
    model = skeleton(dataclasses.replace(config, layers=(layer,), max_position_embeddings=80))
    model.load_state_dict(native_model().state_dict(), assign=True)
    view = KVCache(model.config, 1, 80).view([0])
    with torch.no_grad():
        steps = [model(token_ids[:, :15], cache=view, last_only=True)]
        steps += [model(token_ids[:, i : i + 1], cache=view) for i in range(15, 60)]
        for number, got in enumerate(steps):
            whole = model(token_ids[:, : 15 + number], last_only=True)
            assert (got - whole).abs().max() < 2e-5


def test_pages_that_others_use_are_not_turned(token_ids: torch.Tensor) -> None:
    model = stretched(native_model(2))
    cache = KVCache(model.config, 2, 80)
    with torch.no_grad():
        model(token_ids[:, :18], cache=cache.view([0]))
        cache.continue_from([0, 1], [0, 0])
        model(token_ids[:, 18:30], cache=cache.view([0]))
        assert cache.regimes == [1, 0]
        got = model(token_ids[:, 18:20], cache=cache.view([1]))
        assert (got - model(token_ids[:, :20])[:, 18:]).abs().max() < 1e-5


def test_what_was_taken_back_is_turned_back(token_ids: torch.Tensor) -> None:
    model = stretched(native_model())
    cache = KVCache(model.config, 1, 80)
    with torch.no_grad():
        model(token_ids[:, :24], cache=cache.view([0]))
        cache.truncate(0, 12)
        got = model(token_ids[:, 12:14], cache=cache.view([0]))
        assert (got - model(token_ids[:, :14])[:, 12:]).abs().max() < 1e-5


def test_rows_on_both_sides_of_a_bound_do_not_see_each_other(token_ids: torch.Tensor) -> None:
    model = stretched(native_model(2))
    cache = KVCache(model.config, 2, 80)
    rows = [token_ids[:, :40], token_ids[:, 40:50]]
    with torch.no_grad():
        for slot, row in enumerate(rows):
            cache.expect(slot, row.shape[1])
            model(row[:, :-1], cache=cache.view([slot]))
        both = model(torch.cat([row[:, -1:] for row in rows]), cache=cache.view([0, 1]))
        for row, got in zip(rows, both):
            assert (got - model(row, last_only=True)[0]).abs().max() < 1e-5


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([m for m in METHODS if m not in ("dynamic", "none")]),
    st.floats(1.1, 40.0),
    st.booleans(),
    st.integers(8, 4096),
)
def test_bounds_and_frequencies_go_together(
    method: str, factor: float, ladder: bool, native: int
) -> None:
    config = native_model().config
    config = dataclasses.replace(config, max_position_embeddings=native)
    longer = extended(config, factor=factor, method=method, ladder=ladder)
    mixer: Any = longer.layers[0].mixer
    rope: RoPEConfig = mixer.rope
    assert rope.bounds[0] == native and longer.max_position_embeddings == int(native * factor)
    assert rope.at(native) == RoPEConfig(theta=50.0) and rope.at(native + 1) != rope.at(native)
    assert all(rope.at(b) != rope.at(b + 1) for b in rope.bounds)
    assert rope.at(rope.bounds[-1] + 1) == rope
    rotary = shared_rotary(rope, 8)
    assert rotary.same_tables([1, native]) and not rotary.same_tables([native, native + 1])
    name = architecture_of(longer, "hf")
    assert name.hf is not None and name.hf.read_config(name.hf.config_dict(longer)) == longer


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"method": "yarm"}, "yarn"),
        ({"factor": 1.0}, "give a number above 1"),
        ({"factor": float("nan")}, "give a number above 1"),
        ({"native_length": 21}, "from 1 to the model's context, 20"),
        ({"ladder": True, "keep_native": False}, "leave keep_native on"),
    ],
)
def test_settings_that_stretch_nothing_are_one_line(how: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        extended(native_model().config, **({"factor": 4.0} | how))


def test_a_model_that_was_stretched_or_has_nothing_to_stretch_is_refused() -> None:
    with pytest.raises(UserError, match="extended before"):
        extended(stretched(native_model()).config, factor=2.0)
    with pytest.raises(UserError, match="no rotary positions that look further than a window"):
        extended(native_model(window=7).config, factor=2.0)


def test_windows_that_do_not_fit_each_other_are_refused() -> None:
    inner = RoPEConfig(native=NativeWindow(length=9, rope=RoPEConfig()))
    with pytest.raises(UserError, match="can't lie in one of 9"):
        RoPEConfig(native=NativeWindow(length=9, rope=inner))
    with pytest.raises(UserError, match="both must be the same"):
        RoPEConfig(native=NativeWindow(length=9, rope=RoPEConfig(fraction=0.5)))
    with pytest.raises(UserError, match="of its own"):
        RoPEConfig(
            scaling=DynamicNTKScaling(factor=1.0, original_max_position_embeddings=9),
            native=NativeWindow(length=9, rope=RoPEConfig()),
        )
    scaling = LongRoPEScaling(
        short_factor=(1.0,), long_factor=(2.0,), original_max_position_embeddings=9, factor=2.0
    )
    assert RoPEConfig(scaling=scaling).bounds == (9,)


def test_the_stage_leaves_weights_alone_and_transformers_reads_them(
    make_llama: Any, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    _, source = make_llama(max_position_embeddings=24)
    made = extend_context(ExtendContextConfig(model=str(source), factor=4.0), tmp_path / "long")
    assert made.metrics["context_length"] == 96
    weights = "model.safetensors"
    assert (made.path / weights).read_bytes() == (source / weights).read_bytes()
    ours, plain = load_model(made.path), load_model(source)
    theirs = transformers.LlamaForCausalLM.from_pretrained(made.path).eval()
    ids = torch.randint(0, 97, (1, 90), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (ours(ids) - theirs(ids).logits).abs().max() < 1e-4
        assert torch.equal(ours(ids[:, :24]), plain(ids[:, :24]))


def test_a_gguf_file_keeps_its_blocks(tmp_path: Path) -> None:
    from lmworks.core.gguf import GGUFTensor, read_gguf, write_gguf
    from lmworks.models.architectures.base import to_gguf

    model = native_model()
    state = {name: p.detach().numpy() for name, p in model.named_parameters()}
    tensors = {
        n: GGUFTensor(name=n, shape=a.shape, type="F32", data=a.reshape(-1).view("u1"))
        for n, a in to_gguf(model.config, state).items()
    }
    known = architecture_of(model.config, "gguf")
    metadata = known.layout("gguf").config_dict(model.config) | {"general.name": "tiny"}
    write_gguf(tmp_path / "tiny.gguf", metadata, tensors)
    ids = torch.arange(20)[None]
    for method in ("yarn", "ntk", "pi", "llama3"):
        config = ExtendContextConfig(model=str(tmp_path / "tiny.gguf"), method=method)
        if method == "llama3":  # its native length is not the one that such files stand for
            with pytest.raises(UserError, match="can't tell these positions"):
                extend_context(config, tmp_path / method)
            continue
        made = extend_context(config, tmp_path / method)
        assert open_weights(made.path).config == extended(model.config, factor=4.0, method=method)
        assert read_gguf(made.path / "model.gguf").metadata["general.name"] == "tiny"
        with torch.no_grad():
            assert torch.equal(load_model(made.path)(ids), load_model(tmp_path / "tiny.gguf")(ids))

"""Several adapters over one base: each as if it stood alone, rows of several in one forward."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.models.adapters.base import AdapterConfig, add_adapter
from lmworks.models.adapters.bottleneck import BottleneckConfig
from lmworks.models.adapters.dora import DoRAConfig
from lmworks.models.adapters.files import load_adapter, save_adapter
from lmworks.models.adapters.ia3 import IA3Config
from lmworks.models.adapters.lora import LoRAConfig
from lmworks.models.adapters.prefix import PrefixConfig
from lmworks.models.adapters.shared import SharedAdapters, shell
from lmworks.models.cache import KVCache
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
from lmworks.models.fused_step import why_not_fused
from lmworks.models.model import Model

ADAPTERS: dict[str, AdapterConfig] = {
    "lora": LoRAConfig(rank=4),
    "narrow": LoRAConfig(rank=8, alpha=4, targets=("q_proj", "down_proj")),
    "third": LoRAConfig(rank=2, use_rslora=True),
    "whole": LoRAConfig(rank=2, modules_to_save=("lm_head",)),
    "dora": DoRAConfig(rank=3),
    "ia3": IA3Config(),
    "prefix": PrefixConfig(num_virtual_tokens=3),
    "bottleneck": BottleneckConfig(size=4),
}
MIXED = ("lora", "narrow", "third", "")
IDS = torch.randint(260, (8, 7), generator=torch.Generator().manual_seed(3))


def tiny() -> Model:
    config = ModelConfig.uniform(
        vocab_size=260,
        hidden_size=32,
        num_hidden_layers=2,
        mixer=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8),
        feed_forward=MLPConfig(intermediate_size=48),
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model = Model(config).eval()
    model.reset_parameters(torch.Generator().manual_seed(5))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("adapters")
    for number, (name, config) in enumerate(ADAPTERS.items()):
        adapter = add_adapter(tiny(), config, seed=number)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in adapter.parameters:
                parameter.add_(torch.empty_like(parameter).normal_(std=0.2, generator=generator))
        save_adapter(adapter, place / name, base="base")
    return place


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, torch.Tensor]:
    """What each says where it is the only one; LoRA folded into the weights."""
    found = {"": tiny()(IDS)}
    for name in ADAPTERS:
        model = tiny()
        adapter = load_adapter(model, folder / name)
        if name in MIXED:
            adapter.merge()
        found[name] = model(IDS)
    return {name: logits.detach() for name, logits in found.items()}


@pytest.fixture
def shared(folder: Path) -> SharedAdapters:
    shared = SharedAdapters(tiny())
    for name in ADAPTERS:
        shared.load(name, folder / name)
    return shared


@torch.inference_mode()
def test_each_kind_says_what_it_says_alone(shared, alone):
    for name in ["", *ADAPTERS, ""]:
        with shared.active([name] * len(IDS)) as model:
            torch.testing.assert_close(model(IDS), alone[name], rtol=0, atol=1e-5)
    differences = [(alone[name] - alone[""]).abs().max() for name in ADAPTERS]
    assert min(differences) > 0.01  # else all of this would say nothing


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(MIXED), min_size=8, max_size=8), st.sampled_from([1, 7]))
def test_rows_of_several_in_one_forward(folder_of, alone_of, names, length):
    shared = folder_of
    assert shared.groups(names) == [list(range(8))]
    with torch.inference_mode(), shared.active(names) as model:
        found = model(IDS[:, :length])
    for row, name in enumerate(names):
        wanted = alone_of[name][row, :length]
        torch.testing.assert_close(found[row], wanted, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def folder_of(folder: Path) -> SharedAdapters:
    shared = SharedAdapters(tiny())
    for name in MIXED[:-1]:
        shared.load(name, folder / name)
    return shared


@pytest.fixture(scope="module")
def alone_of(alone: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return alone


def test_kinds_that_do_not_mix_take_turns(shared):
    names = ["lora", "prefix", "", "dora", "prefix", "third", "whole"]
    assert shared.groups(names) == [[0, 2, 5], [1, 4], [3], [6]]


@torch.inference_mode()
def test_unloaded_ones_leave_the_others_as_they_were(shared, alone, folder):
    shared.unload("lora")
    shared.unload("prefix")
    names = ["narrow", "", "third", "narrow", "", "third", "third", ""]
    with shared.active(names) as model:
        found = model(IDS)
    for row, name in enumerate(names):
        torch.testing.assert_close(found[row], alone[name][row], rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="unknown adapter 'lora'"), shared.active(["lora"]):
        pass
    shared.load("lora", folder / "third")  # another under the same name
    with shared.active(["lora"] * 8) as model:
        torch.testing.assert_close(model(IDS), alone["third"], rtol=0, atol=1e-5)


def test_the_base_is_held_once(folder):
    model = tiny()
    own = {id(parameter) for parameter in model.parameters()}
    shared = SharedAdapters(model)
    for name in ("lora", "narrow"):
        shared.load(name, folder / name)
        with shared.active([name]) as adapted:
            others = [p for p in adapted.parameters() if id(p) not in own]
        assert sum(p.numel() * 4 for p in others) == shared.num_bytes(name)
    pointers = {parameter.data_ptr() for parameter in model.parameters()}
    with shared.active(["lora"]) as adapted:
        found = {p.data_ptr() for p in adapted.parameters()}
    assert pointers <= found
    # The mixed forward reads the same memory as the adapter's own.
    layer = shared._layers["layers.0.mixer.q_proj"]
    part = adapted.layers[0].mixer.q_proj
    low, size = layer._bank.a.data_ptr(), layer._bank.a.nbytes
    assert low <= part.lora_A.data_ptr() < low + size


def test_a_shell_is_the_model_and_changes_alone():
    model = tiny()
    copy = shell(model)
    assert torch.equal(copy(IDS), model(IDS))
    copy.layers[0].mixer.q_proj = torch.nn.Identity()
    assert isinstance(model.layers[0].mixer.q_proj, torch.nn.Linear)
    assert copy.layers[1].feed_forward.up_proj is model.layers[1].feed_forward.up_proj


def test_what_does_not_fit_is_refused_and_nothing_changes(shared, alone, folder, tmp_path):
    with pytest.raises(UserError, match="is there already"):
        shared.load("lora", folder / "lora")
    with pytest.raises(UserError, match="holds no adapter_config"):
        shared.load("other", tmp_path)
    other = ModelConfig.uniform(
        vocab_size=260,
        hidden_size=48,
        num_hidden_layers=1,
        mixer=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8),
        feed_forward=MLPConfig(intermediate_size=48),
        max_position_embeddings=64,
    )
    save_adapter(add_adapter(Model(other), LoRAConfig(rank=2)), tmp_path / "x", base="b")
    with pytest.raises(UserError, match="made for another base"):
        shared.load("other", tmp_path / "x")
    with torch.inference_mode(), shared.active([""] * 8) as model:
        torch.testing.assert_close(model(IDS), alone[""], rtol=0, atol=0)
    with pytest.raises(UserError, match="has an adapter already"):
        adapted = tiny()
        add_adapter(adapted, LoRAConfig(rank=2))
        SharedAdapters(adapted)


@torch.inference_mode()
def test_decoding_with_a_cache_equals_reading_at_once(shared, alone):
    names = ["lora", "", "narrow", "third"]
    cache = KVCache(shared.model.config, 4, 16)
    found = []
    for at in range(IDS.shape[1]):
        with shared.active(names) as model:
            found.append(model(IDS[:4, at : at + 1], cache=cache.view(range(4))))
    logits = torch.cat(found, dim=1)
    for row, name in enumerate(names):
        torch.testing.assert_close(logits[row], alone[name][row], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_beside_a_model_whose_steps_are_one_call(tmp_path):
    """The base goes through the compiled step, adapters through the modules: the same cache."""
    config = ModelConfig.uniform(
        vocab_size=260,
        hidden_size=64,
        num_hidden_layers=2,
        mixer=AttentionConfig(num_attention_heads=2, num_key_value_heads=1, head_dim=32),
        feed_forward=MLPConfig(intermediate_size=96),
        max_position_embeddings=64,
    )
    model = Model(config).eval()
    model.reset_parameters(torch.Generator().manual_seed(5))
    assert why_not_fused(model) == ""
    wanted = {"": model(IDS[:3])}
    for name in ("one", "other"):
        adapter = add_adapter(model, LoRAConfig(rank=2))
        generator = torch.Generator().manual_seed(len(name))
        for parameter in adapter.parameters:
            parameter.normal_(std=0.1, generator=generator)
        save_adapter(adapter, tmp_path / name, base="base")
        wanted[name] = model(IDS[:3])
        adapter.remove()
    shared = SharedAdapters(model)
    cache, found = KVCache(config, 3, 16), []
    for at in range(IDS.shape[1]):
        if at == 3:  # in the middle of a sequence of the base
            for name in ("one", "other"):
                shared.load(name, tmp_path / name)
        with shared.active(["", "", ""]) as base:
            found.append(base(IDS[:3, at : at + 1], cache=cache.view(range(3))))
    torch.testing.assert_close(torch.cat(found, 1), wanted[""], rtol=0, atol=1e-5)
    for names in (["one"] * 3, ["other", "", "one"]):
        cache, found = KVCache(config, 3, 16), []
        for at in range(IDS.shape[1]):
            with shared.active(names) as adapted:
                found.append(adapted(IDS[:3, at : at + 1], cache=cache.view(range(3))))
        for row, name in enumerate(names):
            logits = torch.cat(found, 1)[row]
            torch.testing.assert_close(logits, wanted[name][row], rtol=0, atol=1e-5)


def test_loading_while_others_run(folder, alone):
    shared = SharedAdapters(tiny())
    shared.load("lora", folder / "lora")
    wrong: list[float] = []
    stop = threading.Event()

    def run() -> None:
        names = ["lora", "", "lora", "", "lora", "", "lora", ""]
        with torch.inference_mode():
            while not stop.is_set():
                with shared.active(names) as model:
                    found = model(IDS)
                for row, name in enumerate(names):
                    wrong.append(float((found[row] - alone[name][row]).abs().max()))

    thread = threading.Thread(target=run)
    thread.start()
    for _ in range(10):
        shared.load("third", folder / "third")
        shared.load("narrow", folder / "narrow")
        shared.unload("third")
        shared.unload("narrow")
    stop.set()
    thread.join()
    assert wrong and max(wrong) < 1e-5

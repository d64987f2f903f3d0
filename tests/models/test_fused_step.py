"""A step in one call gives what the modules give, whoever shares it, on however many threads."""

from __future__ import annotations

import dataclasses
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lmworks.core.errors import UserError
from lmworks.core.gguf import GGUFTensor
from lmworks.core.quantizers import quantize
from lmworks.models import fused_step, thread_team
from lmworks.models import model as model_module
from lmworks.models.adapters.base import add_adapter
from lmworks.models.adapters.prefix import PrefixConfig
from lmworks.models.cache import KVCache
from lmworks.models.config import (
    AttentionConfig,
    LayerNormConfig,
    LearnedPositions,
    LMHeadConfig,
    MLPConfig,
    ModelConfig,
    RMSNormConfig,
    RoPEConfig,
    SlidingWindow,
)
from lmworks.models.config.model import EmbeddingConfig
from lmworks.models.fused_step import why_not_fused
from lmworks.models.model import Model
from lmworks.models.norms import build_norm
from lmworks.models.packed import PackedLinear

TOLERANCE = 1e-4  # of logits between -10 and 10, about
VOCAB = 97


def config(**changes: Any) -> ModelConfig:
    """Two layers of Llama's kind; `mixer`, `mlp` and whatever a model has are changed."""
    mixer = AttentionConfig(num_attention_heads=6, num_key_value_heads=2, head_dim=16)
    mixer = dataclasses.replace(mixer, **changes.pop("mixer", {}))
    mlp = dataclasses.replace(MLPConfig(intermediate_size=96), **changes.pop("mlp", {}))
    rest = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2} | changes
    return ModelConfig.uniform(mixer=mixer, feed_forward=mlp, **rest)


_ROPE = RoPEConfig(theta=1000.0)
_NORM = RMSNormConfig(eps=1e-6)
FAMILIES: dict[str, ModelConfig] = {
    "llama": config(),
    "llama-tied": config(tie_word_embeddings=True),
    "heads-of-64": config(mixer={"head_dim": 64, "num_attention_heads": 2}),
    "qwen2": config(mixer={"bias": "qkv", "rope": _ROPE}),
    "qwen3": config(mixer={"qk_norm": _NORM, "num_key_value_heads": 3}),
    "mistral": config(mixer={"pattern": SlidingWindow(window=32)}),
    "small-window": config(mixer={"pattern": SlidingWindow(window=16)}),
    "wide-window": config(mixer={"pattern": SlidingWindow(window=100)}),
    "gemma2": config(
        mixer={"softcap": 5.0, "scale": 0.3},
        mlp={"activation": "gelu_tanh"},
        norm=RMSNormConfig(unit_offset=True),
        placement="sandwich",
        embedding=EmbeddingConfig(scale=8.0),
        head=LMHeadConfig(softcap=30.0, scale=0.5),
        tie_word_embeddings=True,
    ),
    "olmo2": config(placement="output"),
    "half-turned": config(mixer={"rope": RoPEConfig(fraction=0.5)}),
    "gpt2": config(
        mixer={"bias": "qkvo", "rope": None, "num_key_value_heads": 6},
        mlp={"gated": False, "bias": True, "activation": "gelu_tanh"},
        norm=LayerNormConfig(),
        positions=LearnedPositions(num_positions=128),
    ),
    "exact-gelu": config(mlp={"gated": False, "activation": "gelu"}),
    "quick-gelu": config(mlp={"activation": "gelu_quick"}),
    "relu": config(mlp={"gated": False, "activation": "relu"}),
    "relu-squared": config(mlp={"gated": False, "activation": "relu_squared"}),
    "tanh": config(mlp={"activation": "tanh"}),
}


def model_of(family: str, seed: int = 0) -> Model:
    """Random weights, norms and biases too: all ones prove nothing."""
    model = Model(FAMILIES[family])
    generator = torch.Generator().manual_seed(seed)
    model.reset_parameters(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.15 if parameter.dim() > 1 else 0.1
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def pack(model: Model, kind: str) -> Model:
    """All matrices of a model in blocks of a type, computed with as they are."""
    for path, module in list(model.named_modules()):
        if type(module) is not nn.Linear:
            continue
        weight = module.weight.detach().numpy()
        rows, columns = weight.shape
        data = quantize(weight, kind).reshape(-1)
        tensor = GGUFTensor(name=path, shape=(rows, columns), type=kind, data=data)
        packed = PackedLinear(tensor, module.bias)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, packed)
    return model


def token_ids(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def ragged(model: Model, slots: Sequence[int] = (2, 0, 3)) -> list[torch.Tensor]:
    """Logits of steps over rows of 3, 19 and 33 positions: one new one each, then five, then one;
    and of the prompts, which are longer than a page and read in chunks."""
    ids = token_ids(len(slots), 60)
    cache = KVCache(model.config, 5, 96)
    lengths = [3, 19, 33][: len(slots)]
    found = []
    for row, (slot, length) in enumerate(zip(slots, lengths)):
        for start in range(0, length, 11):
            chunk = ids[row : row + 1, start : min(start + 11, length)]
            found.append(model(chunk, cache=cache.view([slot])))
    for new in (1, 5, 1, 1):
        chunk = torch.stack([ids[row, n : n + new] for row, n in enumerate(lengths)])
        found.append(model(chunk, cache=cache.view(slots)))
        lengths = [length + new for length in lengths]
    return found


class Calls:
    """How often a step was fused, and whether it may be."""

    def __init__(self) -> None:
        self.fused, self.allowed = 0, True


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    counted = Calls()

    def counting(*arguments: Any, **named: Any) -> Any:
        if not counted.allowed:
            return None
        found = fused_step.fused_states(*arguments, **named)
        counted.fused += found is not None
        return found

    monkeypatch.setattr(model_module, "fused_states", counting)
    return counted


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models on several threads too."""
    monkeypatch.setattr(fused_step, "_SPLIT_WORK", 0)
    monkeypatch.setattr(fused_step, "usable_cores", lambda: 8)


def assert_alike(model: Model, calls: Calls) -> None:
    fused = ragged(model)
    calls.allowed = False
    plain = ragged(model)
    calls.allowed = True
    for ours, expected in zip(fused, plain, strict=True):
        assert ours.shape == expected.shape
        assert (ours - expected).abs().max() < TOLERANCE
    assert max(expected.abs().max() for expected in plain) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_modules(family: str, calls: Calls) -> None:
    model = model_of(family)
    assert why_not_fused(model) == ""
    assert_alike(model, calls)
    # Chunks that would write over a window's past go through the modules.
    assert calls.fused == {"small-window": 6, "mistral": 8}.get(family, 10)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_packed_matrices_are_computed_with_as_they_are(
    family: str, kind: str, calls: Calls
) -> None:
    model = pack(model_of(family), kind)
    assert_alike(model, calls)
    assert calls.fused == 10


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_blocks_of_256_too(kind: str, calls: Calls) -> None:
    wide = config(
        hidden_size=256, mlp={"intermediate_size": 256}, num_hidden_layers=1,
        mixer={"num_attention_heads": 4, "head_dim": 64},
    )  # fmt: skip
    FAMILIES["wide"] = wide
    try:
        model = pack(model_of("wide"), kind)
    finally:
        del FAMILIES["wide"]
    assert_alike(model, calls)


@pytest.mark.parametrize("kind", ["", "Q4_1", "Q8_0"])
def test_a_row_does_not_depend_on_its_company(kind: str, split: None) -> None:
    """To the bit: 21 rows at once, each alone, and any cut of a prompt."""
    model = model_of("qwen3")
    model = pack(model, kind) if kind else model
    ids = token_ids(21, 40)
    cache = KVCache(model.config, 21, 64)
    together = [
        model(ids[:, a:b], cache=cache.view(range(21))) for a, b in ((0, 20), (20, 21), (21, 22))
    ]
    for row in (0, 7, 20):
        cache = KVCache(model.config, 1, 64)
        one = ids[row : row + 1]
        alone = [model(one[:, a:b], cache=cache.view([0])) for a, b in ((0, 3), (3, 20))]
        assert torch.equal(torch.cat(alone, 1)[0], together[0][row])
        for found, (a, b) in zip(together[1:], ((20, 21), (21, 22))):
            assert torch.equal(model(one[:, a:b], cache=cache.view([0]))[0], found[row])


@pytest.mark.parametrize("threads", [1, 3, 5])
def test_a_result_does_not_depend_on_the_threads(threads: int, split: None) -> None:
    model = pack(model_of("llama"), "Q4_1")
    expected = ragged(model)
    torch.set_num_threads(threads)
    assert all(map(torch.equal, ragged(model), expected))


def test_the_last_position_alone_has_the_same_logits() -> None:
    for kind in ("", "Q8_0"):
        model = model_of("llama")
        model = pack(model, kind) if kind else model
        ids = token_ids(3, 12)
        full = model(ids, cache=KVCache(model.config, 3, 32).view([0, 1, 2]))
        last = model(ids, cache=KVCache(model.config, 3, 32).view([0, 1, 2]), last_only=True)
        assert torch.equal(last, full[:, -1:])
        states = model.hidden_states(ids, KVCache(model.config, 3, 32).view([0, 1, 2]))
        assert (model.logits(states) - full).abs().max() < TOLERANCE


def test_steps_and_modules_share_a_cache(calls: Calls) -> None:
    model = model_of("mistral")
    full = model(token_ids(1, 60))
    cache = KVCache(model.config, 2, 96)
    parts = []
    for at in range(60):
        calls.allowed = at % 3 != 0
        parts.append(model(token_ids(1, 60)[:, at : at + 1], cache=cache.view([1])))
    assert (torch.cat(parts, 1) - full).abs().max() < TOLERANCE
    assert calls.fused == 40


def test_two_models_at_the_same_time(split: None) -> None:
    models = [pack(model_of(family), "Q4_1") for family in ("llama", "qwen2", "qwen3")]
    expected = [ragged(model) for model in models]
    wrong: list[str] = []

    def work(index: int) -> None:
        for _ in range(4):
            if not all(map(torch.equal, ragged(models[index]), expected[index])):
                wrong.append(f"model {index}")

    threads = [threading.Thread(target=work, args=(i % 3,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_where_no_thread_can_be_started_one_does_all(
    split: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pack(model_of("llama"), "Q4_1")
    expected = ragged(model)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    helpers = thread_team._Helpers()
    monkeypatch.setattr(thread_team, "_HELPERS", helpers)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert all(map(torch.equal, ragged(model), expected))
    assert helpers.jobs.empty()  # nobody would ever let go of what they hold


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_process_has_threads_of_its_own(split: None) -> None:
    model = pack(model_of("llama"), "Q4_1")
    expected = ragged(model)
    child = os.fork()
    if child == 0:
        same = all(map(torch.equal, ragged(model), expected))
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("wrong", [-1, VOCAB, 10**6])
def test_a_wrong_id_is_refused_before_anything_happens(wrong: int) -> None:
    model = model_of("llama")
    cache = KVCache(model.config, 2, 32)
    with pytest.raises(UserError, match="vocabulary"):
        model(torch.tensor([[3, wrong]]), cache=cache.view([0]))
    assert cache.lengths == [0, 0] and cache.pool.num_free == cache.pool.num_pages


def test_a_row_that_outgrows_the_cache_is_refused() -> None:
    model = model_of("llama")
    cache = KVCache(model.config, 1, 32)
    with pytest.raises(UserError, match="do not fit"):
        model(token_ids(1, 33), cache=cache.view([0]))
    with pytest.raises(ValueError, match="rows"):
        model(token_ids(2, 3), cache=cache.view([0]))


@pytest.mark.parametrize("length", [3, 20])  # few queries where pages lie; many in one piece
@pytest.mark.parametrize("mixer", [{"num_key_value_heads": 1}, {"head_dim": 32}])
def test_modules_refuse_it_too(mixer: Any, length: int, calls: Calls) -> None:
    calls.allowed = False
    with pytest.raises(ValueError, match="another model"):
        model_of("llama")(token_ids(1, length), cache=KVCache(config(mixer=mixer), 1, 32).view([0]))


def test_a_cache_of_another_model_is_refused() -> None:
    model = model_of("llama")
    for other in (FAMILIES["qwen3"], config(num_hidden_layers=1)):
        with pytest.raises(ValueError, match="another model"):
            model(token_ids(1, 3), cache=KVCache(other, 1, 32).view([0]))
    cache = KVCache(model.config, 1, 32)
    model(token_ids(1, 3), cache=cache.view([0]))
    cache._table[0, 0] = 7
    with pytest.raises(ValueError, match="page"):
        model(token_ids(1, 1), cache=cache.view([0]))
    with pytest.raises(ValueError, match="rows of"):
        model(torch.zeros(1, 2, 48), cache=KVCache(model.config, 1, 32).view([0]))


def test_what_is_no_number_stays_with_its_row() -> None:
    for kind in ("", "Q4_1"):
        model = model_of("llama")
        model = pack(model, kind) if kind else model
        ids = token_ids(3, 9)
        expected = model(ids, cache=KVCache(model.config, 3, 32).view([0, 1, 2]))
        rows = model.embed_tokens(ids).detach().clone()
        rows[1, 4, 7] = float("nan")
        rows[2, 8, 0] = float("inf")
        found = model(rows, cache=KVCache(model.config, 3, 32).view([0, 1, 2]))
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1, :4], expected[1, :4])
        assert found[1, 4:].isnan().all() and found[2, 8].isnan().all()
        assert torch.equal(found[2, :8], expected[2, :8])


def test_what_a_page_held_before_is_not_read() -> None:
    model = model_of("llama")
    ids = token_ids(1, 20)
    cache = KVCache(model.config, 1, 32)
    for layer in cache.growing:
        for held in layer.values():
            held.fill_(float("nan"))
    assert model(ids, cache=cache.view([0])).isfinite().all()


Change = Callable[[Model], object]


def _lora_like(model: Model) -> None:
    class Beside(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + 1

    mixer: Any = model.layers[1].mixer
    mixer.v_proj = Beside(mixer.v_proj)


CHANGES: dict[str, Change] = {
    "a matrix is replaced": lambda m: setattr(
        m.layers[0].mixer, "q_proj", nn.Linear(64, 96, False)
    ),
    "a weight is replaced": lambda m: setattr(
        m.layers[1].feed_forward.up_proj, "weight", nn.Parameter(torch.ones(96, 64) / 9)
    ),
    "weights are loaded": lambda m: m.load_state_dict(
        model_of("llama", 7).state_dict(), assign=True
    ),
    "weights move": lambda m: m.double().float(),
    "weights change in place": lambda m: m.layers[0].feed_forward.down_proj.weight.data.mul_(2),
    "a norm changes in place": lambda m: m.norm.weight.data.add_(1),
    "an adapter stands beside a matrix": _lora_like,
    "a prefix stands before the keys": lambda m: add_adapter(
        m, PrefixConfig(num_virtual_tokens=3, start="normal")
    ),
    "a norm is added": lambda m: setattr(m.layers[1].mixer, "q_norm", build_norm(_NORM, 16)),
    "a hook changes an output": lambda m: m.layers[0].register_forward_hook(lambda *a: a[2] * 2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_seen(change: str, calls: Calls) -> None:
    model = model_of("llama")
    ragged(model)
    CHANGES[change](model)
    assert_alike(model, calls)


def test_another_packed_matrix_is_seen(calls: Calls) -> None:
    model, other = (pack(model_of("llama", seed), "Q4_1") for seed in (0, 7))
    ragged(model)
    there: Any = model.layers[0].mixer
    there.q_proj.matrix = other.layers[0].mixer.q_proj.matrix  # type: ignore[union-attr]
    assert_alike(model, calls)


def test_a_model_that_is_gone_takes_its_weights_along() -> None:
    model = pack(model_of("qwen3"), "Q4_1")
    ragged(model)
    mixer: Any = model.layers[0].mixer
    held = [weakref.ref(part) for part in (mixer.q_norm.weight, mixer.q_proj.matrix)]
    del model, mixer
    gc.collect()
    assert [part() for part in held] == [None, None]


WRONG: dict[str, Change] = {
    "columns": lambda m: setattr(m.layers[0].mixer, "q_proj", nn.Linear(128, 96)),
    "rows": lambda m: setattr(m.layers[0].mixer, "q_proj", nn.Linear(64, 192)),
    "keys": lambda m: setattr(m.layers[0].mixer, "k_proj", nn.Linear(64, 96)),
    "down": lambda m: setattr(m.layers[0].feed_forward, "down_proj", nn.Linear(96, 128)),
    "head": lambda m: setattr(m, "lm_head", nn.Linear(128, VOCAB, False)),
    "bias": lambda m: setattr(m.layers[0].mixer.q_proj, "bias", nn.Parameter(torch.ones(16))),
    "norm": lambda m: setattr(m.layers[0].mixer_norm, "bias", nn.Parameter(torch.ones(1))),
}


@pytest.mark.parametrize("part", WRONG)
@pytest.mark.parametrize("kind", ["", "Q4_1"])
def test_parts_of_other_sizes_are_left_to_the_modules(part: str, kind: str) -> None:
    model = model_of("gpt2" if part == "norm" else "llama")
    WRONG[part](model)
    assert why_not_fused(pack(model, kind) if kind else model)


def test_a_hook_that_is_gone_no_longer_matters(calls: Calls) -> None:
    model = model_of("llama")
    hook = model.layers[0].register_forward_hook(lambda *a: None)
    assert "hook" in why_not_fused(model)
    ragged(model)
    assert calls.fused == 0
    hook.remove()
    assert why_not_fused(model) == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mixer": {"head_dim": 8}}, "heads of 8"),
        ({"mixer": {"alibi": True, "rope": None}}, "ALiBi"),
        ({"placement": "parallel"}, "parallel"),
        ({"hidden_size": 72}, "hidden size 72"),
        ({"mixer": {"qk_norm": _NORM, "qk_norm_over": "all"}}, "over all heads"),
    ],
)
def test_what_is_not_covered_is_told(changes: Any, reason: str, calls: Calls) -> None:
    model = Model(config(**changes)).eval()
    model.reset_parameters(torch.Generator().manual_seed(0))
    assert reason in why_not_fused(model)
    model(token_ids(2, 3), cache=KVCache(model.config, 2, 32).view([0, 1]))
    assert calls.fused == 0


def test_a_copy_has_a_plan_of_its_own(calls: Calls) -> None:
    import copy

    model = model_of("llama")
    ragged(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.layers[0].mixer.q_proj.weight.mul_(3)  # type: ignore[union-attr]
    assert_alike(other, calls)
    assert_alike(model, calls)


@pytest.mark.slow
def test_a_processor_without_products_of_bytes_gives_the_same() -> None:
    """The kernels as they are compiled elsewhere pass these tests too."""
    chosen = "llama or company or neighbours or number or (Q4_1 and (product or qwen2 or gpt2))"
    command = [sys.executable, "-m", "pytest", "-q", "-k", chosen, "-p", "no:cacheprovider"]
    here = Path(__file__)
    files = [str(here), str(here.with_name("test_packed.py"))]
    environment = os.environ | {"LMWORKS_PLAIN_KERNELS": "1"}
    done = subprocess.run(
        [*command, *files], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]

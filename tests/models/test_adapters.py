"""Adapters: PEFT says the same with the same files, and nothing is left behind when one is gone."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lmworks.core.errors import UserError
from lmworks.models.adapters.base import Adapter, AdapterConfig, add_adapter
from lmworks.models.adapters.bottleneck import BottleneckConfig
from lmworks.models.adapters.dora import DoRAConfig
from lmworks.models.adapters.files import load_adapter, save_adapter
from lmworks.models.adapters.ia3 import IA3Config
from lmworks.models.adapters.lora import LoRAConfig
from lmworks.models.adapters.prefix import PrefixConfig
from lmworks.models.cache import KVCache
from lmworks.models.load import load_model
from lmworks.models.model import Model

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "max_position_embeddings": 128,
}
LLAMA = SIZES | {"num_key_value_heads": 2}
BASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", LLAMA | {"pad_token_id": 0, "eos_token_id": 1}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 97, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 128}
        | {"bos_token_id": 0, "eos_token_id": 1},
    ),
    "neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SIZES),
}
CONFIGS: dict[str, AdapterConfig] = {
    "lora": LoRAConfig(rank=4),
    "some": LoRAConfig(rank=4, targets=("q_proj", "mixer.v_proj"), use_rslora=True),
    "head": LoRAConfig(rank=4, targets=("all-linear", "lm_head", "embed_tokens")),
    "whole": LoRAConfig(rank=4, modules_to_save=("lm_head", "norm")),
    "dora": DoRAConfig(rank=4),
    "dora-q": DoRAConfig(rank=4, targets=("q_proj",)),
    "ia3": IA3Config(),
    "prefix": PrefixConfig(num_virtual_tokens=5),
}
# Where a base has no such module, or PEFT's own name for it differs.
NOT_THERE = {("gpt2", "head"), ("gpt2", "whole"), ("gpt2", "prefix")}
NOT_THERE |= {("neox", "head"), ("neox", "whole")}
PAIRS = [(b, c) for b in BASES for c in CONFIGS if (b, c) not in NOT_THERE]


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """transformers' models with random weights, in folders."""
    transformers = pytest.importorskip("transformers")
    folders = {}
    for name, (model_class, config_class, values) in BASES.items():
        torch.manual_seed(0)
        model = getattr(transformers, model_class)(getattr(transformers, config_class)(**values))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        folders[name] = tmp_path_factory.mktemp("bases") / name
        model.eval().save_pretrained(folders[name])
    return folders


def move(adapter: Adapter, by: float = 0.05) -> None:
    """Weights as training might leave them: none of them as they started."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * by)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


# PEFT's, on what it guesses of a base, and on what it asks of transformers.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("base", "kind"), PAIRS)
def test_peft_reads_what_we_write_and_we_what_it_writes(
    base: str, kind: str, bases: dict[str, Path], tmp_path: Path, token_ids: torch.Tensor
) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    model = load_model(bases[base])
    adapter = add_adapter(model, CONFIGS[kind], seed=1)
    move(adapter)
    ours = model(token_ids).detach()
    save_adapter(adapter, tmp_path / "ours", base=str(bases[base]))

    theirs = transformers.AutoModelForCausalLM.from_pretrained(bases[base])
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours").eval()
    with torch.no_grad():
        assert difference(theirs(token_ids).logits, ours) <= 1e-5
    theirs.save_pretrained(tmp_path / "theirs")

    again = load_model(bases[base])
    read = load_adapter(again, tmp_path / "theirs")
    assert difference(again(token_ids), ours) <= 1e-5
    save_adapter(read, tmp_path / "again")  # what fused matrices share stays shared
    written = [
        (tmp_path / n / "adapter_model.safetensors").stat().st_size for n in ("ours", "again")
    ]
    assert abs(written[0] - written[1]) <= 1024


@pytest.mark.parametrize("kind", [*CONFIGS, "bottleneck"])
def test_an_adapter_leaves_nothing_behind(
    kind: str, bases: dict[str, Path], token_ids: torch.Tensor
) -> None:
    config = CONFIGS.get(kind, BottleneckConfig(size=4, placement="houlsby"))
    model = load_model(bases["llama"])
    names = set(model.state_dict())
    plain = model(token_ids).detach()
    random = torch.get_rng_state()
    adapter = add_adapter(model, config)
    assert torch.equal(torch.get_rng_state(), random)
    move(adapter)
    adapted = model(token_ids)
    assert difference(adapted, plain) > 1e-3
    adapted.sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters)
    assert sum(p.requires_grad for p in model.parameters()) == len(adapter.parameters)
    with adapter.disabled():
        assert torch.equal(model(token_ids), plain)
        with adapter.disabled():
            pass
        assert torch.equal(model(token_ids), plain)
    assert torch.equal(model(token_ids), adapted)
    adapter.remove()
    assert torch.equal(model(token_ids), plain)
    assert set(model.state_dict()) == names and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "prefix"])
@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_merged_it_says_the_same(
    base: str, kind: str, bases: dict[str, Path], token_ids: torch.Tensor
) -> None:
    if (base, kind) in NOT_THERE:
        pytest.skip("no such module")
    model = load_model(bases[base])
    names = set(model.state_dict())
    adapter = add_adapter(model, CONFIGS[kind])
    move(adapter)
    adapted = model(token_ids).detach()
    adapter.merge()
    assert difference(model(token_ids), adapted) <= 1e-5
    assert set(model.state_dict()) == names


def test_fresh_it_changes_nothing(bases: dict[str, Path], token_ids: torch.Tensor) -> None:
    for config in (LoRAConfig(rank=4), DoRAConfig(rank=4), BottleneckConfig(size=4), IA3Config()):
        model = load_model(bases["llama"])
        plain = model(token_ids).detach()
        add_adapter(model, config)
        assert torch.equal(model(token_ids), plain)


def test_a_prefix_of_tokens_is_the_prompt_that_they_are(
    bases: dict[str, Path], token_ids: torch.Tensor
) -> None:
    model = load_model(bases["llama"])
    prompt = torch.randint(97, (1, 5), generator=torch.Generator().manual_seed(4))
    whole = model(torch.cat((prompt.expand(3, -1), token_ids), 1))[:, 5:]
    adapter = add_adapter(model, PrefixConfig(num_virtual_tokens=5), seed=4)
    assert difference(model(token_ids), whole) <= 1e-5
    cache = KVCache(model.config, 3, 64)  # and step by step, as it is served
    steps = [model(part, cache=cache.view([0, 1, 2])) for part in token_ids.split([7, 1, 32], 1)]
    assert difference(torch.cat(steps, 1), whole) <= 1e-5
    padding = torch.ones_like(token_ids)
    padding[:, 30:] = 0
    padded = model(token_ids, attention_mask=padding)[:, :30]
    assert difference(padded, whole[:, :30]) <= 1e-5
    adapter.remove()


def test_a_bottleneck_is_what_the_paper_says(
    bases: dict[str, Path], tmp_path: Path, token_ids: torch.Tensor
) -> None:
    model = load_model(bases["llama"])
    adapter = add_adapter(model, BottleneckConfig(size=4, placement="houlsby"))
    move(adapter)
    adapted = model(token_ids).detach()
    parts = dict(adapter.parts)
    assert list(parts) == [f"layers.{i}.{p}" for i in (0, 1) for p in ("mixer", "feed_forward")]
    plain = load_model(bases["llama"])
    hooks = []
    for path, part in parts.items():  # h + up relu(down h), after the block, before the residual

        def after(_: Any, __: Any, h: torch.Tensor, part: Any = part) -> torch.Tensor:
            inner = (h @ part.down.weight.T + part.down.bias).relu()
            return h + inner @ part.up.weight.T + part.up.bias

        hooks.append(plain.get_submodule(path).register_forward_hook(after))
    assert difference(plain(token_ids), adapted) <= 1e-6
    save_adapter(adapter, tmp_path)
    fresh = load_model(bases["llama"])
    load_adapter(fresh, tmp_path)
    assert torch.equal(fresh(token_ids), adapted)


def test_dropout_hides_inputs_from_the_update_alone(bases: dict[str, Path]) -> None:
    for kind in (LoRAConfig, DoRAConfig):
        model = load_model(bases["llama"])
        adapter = add_adapter(model, kind(rank=4, dropout=0.5))
        layer: Any = adapter.parts["layers.0.mixer.q_proj"]
        x = torch.randn(4, 48)
        plain = layer.base(x)
        model.train()
        torch.manual_seed(0)
        assert difference(layer(x), plain) <= 1e-6  # B is zero, DoRA's lengths are the base's
        move(adapter)
        assert not torch.equal(layer(x), layer(x))
        model.eval()
        assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("kind", [LoRAConfig, DoRAConfig])
def test_the_gradients_are_those_of_the_formula(kind: type[LoRAConfig]) -> None:
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 5).double().requires_grad_(False)
    part: Any = kind(rank=3).linear_type()(base, rank=3, scale=0.7)
    part = part.double()
    with torch.no_grad():
        for parameter in part.trained():
            parameter.add_(torch.rand_like(parameter))
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 4, 5, dtype=torch.float64)
    wanted = [x, *part.trained()]
    ours = torch.autograd.grad(part(x), wanted, upstream)
    whole = base.weight + 0.7 * part.lora_B @ part.lora_A
    if kind is DoRAConfig:
        whole = (part.magnitude / whole.norm(dim=1).detach())[:, None] * whole
    formula = torch.autograd.grad(x @ whole.T + base.bias, wanted, upstream)
    for a, b in zip(ours, formula, strict=True):
        assert difference(a, b) <= 1e-12


def test_copies_of_a_model_stand_alone(bases: dict[str, Path], token_ids: torch.Tensor) -> None:
    model = load_model(bases["llama"])
    move(add_adapter(model, LoRAConfig(rank=4)))
    twin = copy.deepcopy(model)
    adapted = model(token_ids)
    vars(twin)["adapter"].remove()
    assert torch.equal(model(token_ids), adapted)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (LoRAConfig(targets=("q_porj",)), "did you mean 'q_proj'?"),
        (LoRAConfig(rank=64), "rank 64 is more than layers.0.mixer.q_proj (48 x 48) can have: at"),
        (LoRAConfig(rank=4, modules_to_save=("heads",)), "no module with weights"),
        (DoRAConfig(rank=4, targets=("embed_tokens",)), "embed_tokens is an embedding"),
        (IA3Config(targets=("k_proj",)), "is in feed_forward_targets but not in targets"),
    ],
)
def test_what_does_not_fit_is_told(
    config: AdapterConfig, said: str, bases: dict[str, Path]
) -> None:
    model = load_model(bases["llama"])
    with pytest.raises(UserError) as error:
        add_adapter(model, config)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("make", [lambda: LoRAConfig(rank=0), lambda: LoRAConfig(alpha=-1.0)])
def test_wrong_settings_are_told(make: Callable[[], Any]) -> None:
    with pytest.raises(UserError):
        make()


def test_an_adapter_of_another_base_is_told_with_the_shapes(
    bases: dict[str, Path], tmp_path: Path, make_llama: Callable[..., tuple[Any, Path]]
) -> None:
    save_adapter(add_adapter(load_model(bases["llama"]), LoRAConfig(rank=4)), tmp_path / "a")
    _, other = make_llama(intermediate_size=96)
    with pytest.raises(UserError, match=r"the shape \(80, 4\), .* 96 outputs: .* another base"):
        load_adapter(load_model(other), tmp_path / "a")
    _, shallow = make_llama(num_hidden_layers=1)
    with pytest.raises(UserError, match=r"model\.layers\.1.* which this model does not have"):
        load_adapter(load_model(shallow), tmp_path / "a")


def test_damaged_and_unknown_files_are_told(bases: dict[str, Path], tmp_path: Path) -> None:
    model = load_model(bases["llama"])
    save_adapter(add_adapter(load_model(bases["llama"]), LoRAConfig(rank=4)), tmp_path)
    tensors, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    whole, values = tensors.read_bytes(), json.loads(config.read_text())
    tensors.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged or cut short"):
        load_adapter(model, tmp_path)
    tensors.write_bytes(whole)
    for change, said in (
        ({"peft_type": "VERA"}, "peft_type 'VERA' is not supported; known: LORA, IA3, PREFIX"),
        ({"bias": "all"}, "bias = 'all' are not supported"),
        ({"peft_type": "IA3"}, "tensors that have no place in this model"),
    ):
        config.write_text(json.dumps(values | change))
        with pytest.raises(UserError) as error:
            load_adapter(model, tmp_path)
        assert said in str(error.value)
        assert vars(model).get("adapter") is None  # nothing half done
    tensors.unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    config.write_text(json.dumps(values))
    with pytest.raises(UserError, match="is a pickle"):
        load_adapter(model, tmp_path)


def test_two_adapters_at_once_are_refused(bases: dict[str, Path]) -> None:
    model: Model = load_model(bases["llama"])
    add_adapter(model, LoRAConfig(rank=4))
    with pytest.raises(UserError, match="has an adapter already"):
        add_adapter(model, IA3Config())

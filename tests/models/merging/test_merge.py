"""Whole merges: mergekit's YAML against mergekit's own result, both formats, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lmworks.core.config import from_mapping
from lmworks.core.errors import UserError
from lmworks.core.gguf import dequantize, read_gguf, write_gguf
from lmworks.models.load import load_model
from lmworks.models.merging.stage import MergeConfig, merge, plan_lines

RECIPES = {
    "gradients and filters": """
        models:
        - {model: a, parameters: {weight: [0.2, 0.9]}}
        - {model: b, parameters: {weight: 3e-1}}
        - model: c
          parameters: {weight: [{filter: mlp, value: 0.1}, {value: 0.4}]}
        merge_method: linear
        dtype: float32
        """,
    "slerp of slices": """
        slices:
        - sources: [{model: a, layer_range: [0, 4]}, {model: b, layer_range: [0, 4]}]
        merge_method: slerp
        base_model: a
        parameters:
          t:
          - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
          - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
          - value: 0.5
        dtype: bfloat16
        """,
    "ties": """
        models:
        - {model: a, parameters: {density: [0.3, 0.9], weight: 0.5}}
        - model: b
          parameters: {density: 0.5, weight: [{filter: mlp, value: 0.8}, {value: 0.2}]}
        merge_method: ties
        base_model: base
        parameters: {normalize: true, int8_mask: true}
        """,
    "a stack of layers": """
        slices:
        - sources: [{model: a, layer_range: [0, 3]}]
        - sources:
          - model: b
            layer_range: [1, 4]
            parameters: {scale: [{filter: o_proj, value: 0.5}, {value: 1}]}
        merge_method: passthrough
        dtype: float16
        """,
    "model stock": """
        models: [{model: a}, {model: b}, {model: c}]
        merge_method: model_stock
        base_model: base
        out_dtype: bfloat16
        """,
    "sce": """
        models: [{model: a}, {model: b}, {model: base}]
        merge_method: sce
        base_model: base
        parameters: {select_topk: 0.3}
        """,
    "modules": """
        modules:
          default:
            models: [{model: a, parameters: {gamma: 0.2}}, {model: b, parameters: {weight: 0.5}}]
        merge_method: breadcrumbs_ties
        base_model: {model: {path: base}}
        parameters: {density: 0.5, weight: 1.0}
        """,
    "slices with their own parameters": """
        slices:
        - sources: [{model: a, layer_range: [0, 2]}, {model: base, layer_range: [0, 2]}]
          parameters: {weight: 0.5}
        - sources: [{model: a, layer_range: [1, 4]}, {model: base, layer_range: [1, 4]}]
          parameters: {weight: [0.5, 1]}
        merge_method: task_arithmetic
        base_model: base
        parameters: {lambda: 0.8}
        """,
}


@pytest.fixture
def models(
    make_llama: Callable[..., tuple[Any, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Four small models of four layers in one folder, which becomes the working directory."""
    base, folder = make_llama("base", num_hidden_layers=4)
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for number, name in enumerate("abc", 1):
        random = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for key, tensor in base.state_dict().items():
                tensor.copy_(state[key] + 0.05 * torch.randn(tensor.shape, generator=random))
        base.save_pretrained(tmp_path / name)
    monkeypatch.chdir(folder.parent)
    return folder.parent


def _merge(text: str, out: str = "ours", **more: Any) -> dict[str, torch.Tensor]:
    values = yaml.safe_load(text) | more
    merge(from_mapping(MergeConfig, values), out)
    return _read(Path(out))


def _read(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", RECIPES.values(), ids=list(RECIPES))
def test_equal_to_mergekit(models: Path, text: str) -> None:
    """Names, types and every bit of a merged checkpoint."""
    pytest.importorskip("mergekit")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, device="cpu")
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), "theirs", options)
    wanted, found = _read(models / "theirs"), _merge(text)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    theirs = json.loads((models / "theirs" / "config.json").read_text())
    assert json.loads((models / "ours" / "config.json").read_text()) == theirs
    load_model("ours")


def test_shards_and_bands_change_nothing(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = RECIPES["ties"]
    whole = _merge(text, "whole")
    monkeypatch.setattr("lmworks.models.merging.execute.BAND_BYTES", 500)
    parts = _merge(text, "parts", shard_megabytes=0)
    assert len(list(Path("parts").glob("*.safetensors"))) == len(whole)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    load_model("parts")


def test_masks_hang_on_the_seed_alone(models: Path) -> None:
    text = """
        models: [{model: a}, {model: b}]
        merge_method: dare_ties
        base_model: base
        parameters: {weight: 0.5, density: 0.4}
        """
    first, other = _merge(text, "first"), _merge(text, "other", seed=1)
    again = _merge(text, "again")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def _as_gguf(folder: str, kind: str, out: str) -> Path:
    """The model as a GGUF file, without a tokenizer."""
    from lmworks.compression.quantize import encode
    from lmworks.models.architectures.base import architecture_of, to_gguf

    model = load_model(folder)
    state = {name: p.detach().numpy() for name, p in model.named_parameters()}
    tensors = {
        name: encode(name, array, kind) for name, array in to_gguf(model.config, state).items()
    }
    found = architecture_of(model.config, "gguf")
    metadata = {"general.architecture": found.name, "general.name": "kept"}
    Path(out).mkdir()
    path = Path(out) / "model.gguf"
    write_gguf(path, metadata | found.layout("gguf").config_dict(model.config), tensors)
    return path


SLERP = {"merge_method": "slerp", "parameters": {"t": 0.3}}


def test_gguf_is_merged_as_its_weights_are(models: Path) -> None:
    """Float files: what comes out is what the folders give, row for row, also mixed."""
    _as_gguf("a", "F32", "ga")
    _as_gguf("b", "F32", "gb")
    wanted = _merge(yaml.dump(SLERP | {"models": ["a", "b"], "base_model": "a"}), "plain")
    for index, (one, other) in enumerate([("ga", "gb"), ("ga", "b"), ("a", "gb")]):
        text = yaml.dump(SLERP | {"models": [one, other], "base_model": one})
        found = _merge(text, f"mixed{index}", format="safetensors")
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    merge(from_mapping(MergeConfig, SLERP | {"models": ["ga", "gb"], "base_model": "ga"}), "gm")
    merged, plain = load_model("gm"), load_model("plain")
    for (name, mine), theirs in zip(merged.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_gguf_keeps_its_types_and_metadata(models: Path) -> None:
    _as_gguf("a", "Q8_0", "ga")
    _as_gguf("b", "Q4_0", "gb")
    merge(from_mapping(MergeConfig, SLERP | {"models": ["ga", "gb"], "base_model": "ga"}), "gm")
    merged, lead = read_gguf("gm/model.gguf"), read_gguf("ga/model.gguf")
    assert merged.metadata == lead.metadata
    assert {n: t.type for n, t in merged.tensors.items()} == {
        n: t.type for n, t in lead.tensors.items()
    }
    one, two = (
        torch.from_numpy(dequantize(read_gguf(f"{name}/model.gguf").tensors["output.weight"]))
        for name in ("ga", "gb")
    )
    from lmworks.models.merging.base import merge_tensors

    wanted = merge_tensors("slerp", [two], one, shared={"t": 0.3})
    found = torch.from_numpy(dequantize(merged.tensors["output.weight"]))
    assert float((found - wanted).abs().max()) <= float(wanted.abs().max()) / 127


def test_layers_of_a_gguf_are_stacked(models: Path) -> None:
    _as_gguf("a", "Q8_0", "ga")
    slices = [
        {"sources": [{"model": "ga", "layer_range": [0, 3]}]},
        {"sources": [{"model": "ga", "layer_range": [2, 4]}]},
    ]
    merge(from_mapping(MergeConfig, {"merge_method": "passthrough", "slices": slices}), "gm")
    merged, lead = read_gguf("gm/model.gguf"), read_gguf("ga/model.gguf")
    assert merged.metadata["llama.block_count"] == 5
    for mine, theirs in [
        ("blk.3.attn_q.weight", "blk.2.attn_q.weight"),
        ("blk.4.attn_v.weight",) * 2,
    ]:
        theirs = theirs.replace("blk.4", "blk.3")
        assert (merged.tensors[mine].data == lead.tensors[theirs].data).all()
    assert len(load_model("gm").layers) == 5


@pytest.mark.parametrize("format", ["gguf", "safetensors"])
@pytest.mark.parametrize("pair", [("ga", "gd"), ("a", "deep"), ("ga", "deep"), ("a", "gd")])
def test_layers_of_a_deeper_model_are_stacked(
    models: Path,
    make_llama: Callable[..., tuple[Any, Path]],
    pair: tuple[str, str],
    format: str,
) -> None:
    """Layers that lie beyond the last of the model whose config the result gets."""
    make_llama("deep", num_hidden_layers=7)
    for folder, out in (("a", "ga"), ("deep", "gd")):
        if out in pair:
            _as_gguf(folder, "F32", out)
    slices = [
        {"sources": [{"model": pair[0], "layer_range": [0, 3]}]},
        {"sources": [{"model": pair[1], "layer_range": [5, 7]}]},
    ]
    values = {"merge_method": "passthrough", "slices": slices, "format": format, "type": "F32"}
    if format == "safetensors":
        del values["type"]
    merge(from_mapping(MergeConfig, values), "made")
    made, first, deep = (load_model(name).layers for name in ("made", "a", "deep"))
    assert len(made) == 5
    for mine, theirs in zip(made, [*first[:3], *deep[5:]], strict=True):
        assert torch.equal(mine.mixer.q_proj.weight, theirs.mixer.q_proj.weight)


def _refused(values: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        list(plan_lines(from_mapping(MergeConfig, values)))


TWO = {"merge_method": "linear", "models": ["a", "b"], "parameters": {"weight": 1}}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"merge_method": "liner"}, "did you mean 'linear'"),
        ({"merge_method": "ties"}, "give base_model"),
        ({"merge_method": "slerp", "base_model": "c"}, "takes 1 model beside the base; given: 2"),
        ({"models": []}, "needs either models: or slices:"),
        ({"parameters": {"wight": 1}}, "did you mean 'weight'"),
        ({"parameters": {"weight": "heavy"}}, "is no number"),
        ({"parameters": {"weight": []}}, "empty list"),
        ({"parameters": {"weight": [{"filtr": "mlp", "value": 1}]}}, "is not {filter"),
        ({"models": [{"model": "a", "layers": 3}, "b"]}, "unknown key of models"),
        ({"models": ["a+b"]}, "merge-adapter --base a --adapter b"),
        ({"models": ["a", {"model": {"path": "b"}, "weight": 3}]}, "unknown key"),
        ({"dtype": "float8"}, "unknown dtype 'float8'"),
        ({"tokenizer": {"source": "union", "tokens": {}}}, "tokenizer.tokens is not supported"),
        ({"tokenizer_source": "c"}, "unknown tokenizer_source"),
        ({"type": "Q8_0"}, "give format gguf"),
        ({"weights": [1.0]}, "1 weights for 2 models"),
    ],
)
def test_recipes_that_make_no_sense(models: Path, change: dict[str, Any], what: str) -> None:
    _refused(TWO | change, what)


def test_slices_that_do_not_fit(models: Path) -> None:
    def of(*ranges: tuple[str, list[int]], **more: Any) -> dict[str, Any]:
        sources = [{"model": name, "layer_range": span} for name, span in ranges]
        return {"merge_method": "passthrough", "slices": [{"sources": sources, **more}]}

    _refused(of(("a", [0, 9])), "which has 4 layers")
    _refused(of(("a", [3, 3])), r"give \[first, end\]")
    _refused(of(("a", [0, 2]), ("b", [0, 3])), "all of one length")
    _refused(of(("a", [0, 2]), ("b", [0, 2])), "takes 1 model; given: 2")
    _refused(of(("a", [0, 2]), residual_weight=0.1), "residual_weight is not supported")
    linear = of(("a", [0, 2]), ("b", [0, 2])) | {"merge_method": "ties", "base_model": "c"}
    _refused(linear, "the base c is not among its sources")


def test_models_that_do_not_fit(models: Path, make_llama: Callable[..., tuple[Any, Path]]) -> None:
    make_llama("wide", num_hidden_layers=4, intermediate_size=96)
    make_llama("deep", num_hidden_layers=5)
    make_llama("words", num_hidden_layers=4, vocab_size=98)
    _refused(TWO | {"models": ["a", "wide"]}, "wide has intermediate_size 96 and a 80")
    _refused(TWO | {"models": ["a", "deep"]}, "deep has 5 layers and a 4")
    _refused(TWO | {"models": ["a", "words"]}, "vocabularies differ.*transplant")
    config = json.loads(Path("b/config.json").read_text())
    Path("b/config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    _refused(TWO, "b is a qwen2 and a a llama")


def test_nan_is_named(models: Path) -> None:
    state = load_file("b/model.safetensors")
    state["model.layers.2.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(state, "b/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"b: model\.layers\.2\.mlp\.up_proj\.weight holds .* NaN"):
        merge(from_mapping(MergeConfig, TWO), "ours")


def test_numbers_past_the_type_are_named(models: Path) -> None:
    values = TWO | {"out_dtype": "float16", "weights": [1e6, 1e6]}
    values["parameters"] = {"normalize": False}
    with pytest.raises(UserError, match="that float16 can't hold"):
        merge(from_mapping(MergeConfig, values), "ours")


def test_other_tokenizers_are_refused(models: Path) -> None:
    words = {"a": ["<unk>", "one", "two"], "b": ["<unk>", "two", "one"]}
    for name, tokens in words.items():
        model = {"type": "WordPiece", "vocab": {t: i for i, t in enumerate(tokens)}}
        model |= {"unk_token": "<unk>", "max_input_chars_per_word": 100}
        model["continuing_subword_prefix"] = "##"
        saved = {"version": "1.0", "added_tokens": [], "model": model, "normalizer": None}
        saved |= {"pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None}
        Path(name, "tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="2 ids stand for other tokens"):
        merge(from_mapping(MergeConfig, TWO), "ours")


def test_the_command_takes_mergekits_file(models: Path) -> None:
    from click.testing import CliRunner

    from lmworks.cli.main import cli

    Path("recipe.yaml").write_text(RECIPES["ties"])
    ran = CliRunner().invoke(cli, ["model", "merge", "recipe.yaml", "--out", "made"])
    assert ran.exit_code == 0, ran.output
    assert _read(Path("made")).keys() == load_file("a/model.safetensors").keys()
    dry = CliRunner().invoke(cli, ["model", "merge", "recipe.yaml", "--out", "x", "--dry-run"])
    assert "39 tensors in all" in dry.output
    assert not Path("x").exists()

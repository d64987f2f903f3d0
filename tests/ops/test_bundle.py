"""Bundles: they run by their own program, within the memory, and say what the model says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lmworks.core.errors import UserError
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig, RoPEConfig
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.ops import bundle as module
from lmworks.ops.bundle import BundleConfig, bundle
from lmworks.tokenizers.train import train_bpe

TEXTS = ["the cat sat on the mat, and the 12 dogs don't sit on the cat\n"] * 20


def saved(folder: Path, seed: int = 0) -> Path:
    """A tiny model that is sure of itself, as trained ones are."""
    tokenizer = train_bpe(TEXTS, vocab_size=288)
    config = ModelConfig.uniform(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        num_hidden_layers=2,
        mixer=AttentionConfig(
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, rope=RoPEConfig(theta=1e4)
        ),
        feed_forward=MLPConfig(intermediate_size=96),
        max_position_embeddings=512,
    )
    model = Model(config)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 5
    save_model(model, folder, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"))


def made(model: Path, out: Path, **how: Any) -> tuple[Path, dict[str, Any]]:
    defaults = {"memory": "400MB", "threads": 1}
    found = bundle(BundleConfig(model=str(model), **defaults | how), out)
    return found.path, found.metrics


def test_a_gguf_bundle_answers_like_its_model(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    folder, figures = made(model, tmp_path / "out", type="F32")
    # llama.cpp keeps float16 in its cache: where two tokens are as likely, it may take the other.
    assert figures["distance"] < 0.02 and figures["num_tokens"] > 100
    assert figures["context_length"] == 512 and figures["cache_type"] == "f16"
    assert 0 < figures["peak_bytes"] < 400e6
    card = (folder / "README.md").read_text()
    assert "Android" in card and "[" not in card
    program = [sys.executable, str(folder / "run.py"), "--tokens"]
    line = json.dumps({"ids": [5, 50, 100], "count": 4}) + "\n"
    said = subprocess.run(program, input=line, capture_output=True, text=True, timeout=60)
    assert len(json.loads(said.stdout)["ids"]) == 4


def test_an_onnx_bundle_answers_like_its_model(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder, figures = made(model, tmp_path / "out", target="onnx")
    assert figures["distance"] == 0 and figures["equal_before_difference"] == 1
    program = [sys.executable, str(folder / "run.py"), "the cat"]
    said = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0 and said.stdout.strip()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporter, about itself
def test_an_executorch_bundle_answers_like_its_model(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    folder, figures = made(model, tmp_path / "out", target="executorch", memory="1GB")
    assert figures["distance"] == 0 and figures["equal_before_difference"] == 1
    program = [sys.executable, str(folder / "run.py"), "the cat"]
    said = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0 and said.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_rounded_onnx_weights_stay_near(model: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("onnxruntime")
    _, plain = made(model, tmp_path / "plain", target="onnx")
    _, figures = made(model, tmp_path / "out", target="onnx", type=kind, max_distance=0.6)
    assert figures["distance"] < 0.6 and figures["bytes"] < 0.85 * plain["bytes"]


def test_a_bundle_that_says_something_else_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp")
    other = saved(tmp_path / "other", seed=1)
    packed = module._PACK["gguf"]

    def wrong(config: BundleConfig, run: Any) -> Path:
        run.inputs["model"] = other
        return packed(config, run)

    monkeypatch.setitem(module._PACK, "gguf", wrong)
    with pytest.raises(UserError, match=r"another token than the model at \d+\.\d% of"):
        made(model, tmp_path / "out", type="F32")
    assert not (tmp_path / "out").exists()


def test_a_memory_that_is_too_small_names_what_is_enough(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    with pytest.raises(UserError, match=r"282 tokens of context need about .*: allow 70MB"):
        made(model, tmp_path / "out", memory="50MB")


def test_a_program_past_its_memory_is_a_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.setitem(module._RUNTIME_BYTES, "gguf", 0)
    with pytest.raises(UserError, match=r"the bundle's program ended|allow .*MB, or take"):
        made(model, tmp_path / "out", memory="20MB")


def test_a_context_that_is_too_long_or_too_short_is_named(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    with pytest.raises(UserError, match=r"1024: the model reads 512 tokens; .*extend-context"):
        made(model, tmp_path / "out", context_length=1024)
    with pytest.raises(UserError, match="no prompt leaves room for an answer of 32 tokens"):
        made(model, tmp_path / "out", context_length=40)


def test_a_program_that_says_much_and_ends_is_a_line(tmp_path: Path) -> None:
    from lmworks.ops.bundle_replay import Runner

    program = "import sys\nsys.stderr.write('no\\n' * 100_000)\nsys.exit('gone')\n"
    (tmp_path / "run.py").write_text(program)
    ended = pytest.raises(UserError, match=r"status 1; it last said: gone\): give it more")
    with Runner(tmp_path, 400_000_000) as runner, ended:
        runner.ask([1], 1)


def test_settings_that_go_with_no_target(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match="an ONNX bundle has float32, int8 or int4"):
        made(model, tmp_path / "out", target="onnx", type="Q4_K")


def test_a_runtime_that_is_not_here_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package executorch: pip install .*executorch"):
        made(model, tmp_path / "out", target="executorch")

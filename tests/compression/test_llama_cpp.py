"""llama.cpp itself reads what `quantize` writes: the same tokens, the same probabilities."""

from __future__ import annotations

import dataclasses
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lmworks.compression.quantize import QuantizeConfig, quantize
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig, RoPEConfig
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.train import train_bpe

llama_cpp = pytest.importorskip("xllamacpp", reason="pip install xllamacpp, to check llama.cpp")

TEXTS = ["the cat sat on the mat, and the 12 dogs don't sit on the cat\n"] * 20
PROMPT = [5, 50, 100, 200, 30, 262]
CONFIG = ModelConfig.uniform(
    vocab_size=288,  # the tokenizer says
    hidden_size=64,
    num_hidden_layers=2,
    mixer=AttentionConfig(
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, rope=RoPEConfig(theta=1e4)
    ),
    feed_forward=MLPConfig(intermediate_size=96),
    max_position_embeddings=128,
)


class Server:
    """llama.cpp's own HTTP server over one file."""

    def __init__(self, path: Path) -> None:
        parameters = llama_cpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx, parameters.n_parallel = 128, 1
        parameters.cpuparams.n_threads = 1
        parameters.warmup = parameters.fit_params = False
        parameters.verbosity = -1
        self._server = llama_cpp.Server(parameters)

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self._server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer: dict[str, Any] = json.loads(response.read())
            return answer


@pytest.fixture(scope="module", params=[("F32", False), ("Q8_0", False), ("Q8_0", True)])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path, Server]]:
    """(type, folder with the GGUF, llama.cpp with it)."""
    kind, tied = request.param
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = train_bpe(TEXTS, vocab_size=288)
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size, tie_word_embeddings=tied)
    model = Model(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    for parameter in model.parameters():  # away from "all tokens are as likely"
        if parameter.ndim == 2:
            parameter.data *= 5
    save_model(model, folder / "model", tokenizer=tokenizer)
    out = quantize(QuantizeConfig(model=str(folder / "model"), type=kind), folder / "out").path
    yield kind, out, Server(out / "model.gguf")


def test_the_probabilities_are_ours(made: tuple[str, Path, Server]) -> None:
    kind, folder, server = made
    model = load_model(folder)
    body = {"prompt": PROMPT, "n_predict": 1, "temperature": 0, "n_probs": 1000}
    listed = server.ask("/completion", body)["completion_probabilities"][0]["top_logprobs"]
    with torch.inference_mode():
        ours = model(torch.tensor([PROMPT]))[0, -1].log_softmax(-1)
    assert len(listed) == model.config.vocab_size
    theirs = torch.tensor([entry["logprob"] for entry in sorted(listed, key=lambda e: e["id"])])
    # llama.cpp keeps keys and values as float16; beside 8-bit weights, activations as 8 bits too.
    assert ours.std() > 0.5
    assert (ours - theirs).abs().max() < (5e-3 if kind == "F32" else 0.1)


@pytest.mark.parametrize(
    "text", ["the cat", "  two  spaces\n\n", "naïve 12345 — don't", "\tif x:\r\n", "日本 🙂"]
)
def test_the_tokens_are_ours(made: tuple[str, Path, Server], text: str) -> None:
    _, folder, server = made
    tokenizer = load_tokenizer(folder)
    body = {"content": text, "add_special": False}
    assert server.ask("/tokenize", body)["tokens"] == tokenizer.encode(text)


def test_special_tokens_are_known(made: tuple[str, Path, Server]) -> None:
    _, folder, server = made
    special = load_tokenizer(folder).special_tokens
    for text, token_id in special.items():
        body = {"content": text, "parse_special": True}
        assert server.ask("/tokenize", body)["tokens"] == [token_id]


def test_the_chat_template_is_applied(made: tuple[str, Path, Server]) -> None:
    _, folder, server = made
    messages = [{"role": "user", "content": "the cat"}]
    prompt = server.ask("/apply-template", {"messages": messages})["prompt"]
    assert prompt == load_tokenizer(folder).render_chat(messages)

"""Published GGUF files with K-quants: the same greedy text as llama.cpp's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmworks.core.gguf import find_gguf
from lmworks.core.references import resolve
from lmworks.models.cache import KVCache
from lmworks.models.load import load_model

pytest.importorskip("xllamacpp", reason="pip install xllamacpp, to check llama.cpp")
from tests.compression.test_llama_cpp import Server

pytestmark = [pytest.mark.weights, pytest.mark.slow, pytest.mark.timeout(900)]

NUM_NEW = 32
# Texts that go on without two tokens being as likely: llama.cpp rounds activations to 8 bits
# beside quantised weights, and takes the other one where they are.
PROMPTS = {
    "gemma-3-270m": ["def fibonacci(n):\n", "Water boils at"],
    "qwen2.5-coder-0.5b": ["def fibonacci(n):\n"],
}


@pytest.mark.parametrize("alias", PROMPTS)
def test_the_same_text_as_llama_cpp(alias: str) -> None:
    folder = resolve(alias).path
    path = None if folder is None else find_gguf(Path(folder))
    if path is None:
        pytest.skip("the alias led to safetensors, not to the published GGUF file")
    model, server = load_model(path), Server(path)
    for prompt in PROMPTS[alias]:
        wanted = server.ask("/tokenize", {"content": prompt, "add_special": True})["tokens"]
        body = {"prompt": wanted, "n_predict": NUM_NEW, "temperature": 0, "n_probs": 1}
        answer = server.ask("/completion", body)["completion_probabilities"]
        view = KVCache(model.config, 1, len(wanted) + NUM_NEW).view([0])
        step, ours = torch.tensor([wanted]), []
        with torch.inference_mode():
            for _ in range(NUM_NEW):
                step = model(step, cache=view, last_only=True)[:, -1].argmax(-1, keepdim=True)
                ours.append(int(step))
        assert ours == [token["id"] for token in answer]

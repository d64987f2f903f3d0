"""SmolLM2-135M out of its published GGUF: what transformers computes from the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lmworks.core.gguf import find_gguf
from lmworks.core.references import resolve
from lmworks.models.cache import KVCache
from lmworks.models.load import load_model
from lmworks.models.model import Model

pytestmark = pytest.mark.weights

NUM_NEW = 64
PROMPTS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain photosynthesis to a child.",
    "List three prime numbers above 100.",
    "def fibonacci(n):",
    "Why is the sky blue?",
    "Translate 'good morning' into Spanish.",
    "Who wrote Hamlet?",
    "Give me a recipe for pancakes.",
    "What does the Python keyword yield do?",
    "Summarise the plot of Romeo and Juliet.",
    "How far away is the Moon?",
    "What is 17 times 23?",
    "Name a mammal that lays eggs.",
    "What is a black hole?",
    "Describe a rainy day in one sentence.",
    "How do vaccines work?",
    "What is the boiling point of water in Kelvin?",
    "Tell me a joke about computers.",
    "What should I pack for a week in the mountains?",
]


@pytest.fixture(scope="module", params=[False, True], ids=["float32", "packed"])
def ours(request: pytest.FixtureRequest) -> Model:
    return load_model("smollm2-135m", packed=request.param)


@pytest.fixture(scope="module")
def theirs() -> tuple[Any, Any]:
    """transformers' model and tokenizer from the same file, float32."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    folder = resolve("smollm2-135m").path
    path = None if folder is None else find_gguf(Path(folder))
    if path is None:
        pytest.skip("the alias led to safetensors, not to the published GGUF file")
    source = {"gguf_file": path.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, dtype=torch.float32, **source
    )
    return model.eval(), transformers.AutoTokenizer.from_pretrained(path.parent, **source)


def prompt_ids(tokenizer: Any, prompt: str) -> torch.Tensor:
    text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    return torch.tensor([tokenizer.encode(text, add_special_tokens=False)])


@torch.inference_mode()
def greedy(model: Model, ids: torch.Tensor, num_new: int) -> list[int]:
    view = KVCache(model.config, 1, ids.shape[1] + num_new).view([0])
    answer: list[int] = []
    for _ in range(num_new):
        ids = model(ids, cache=view, last_only=True).argmax(-1)
        answer.append(int(ids))
    return answer


def their_greedy(model: Any, ids: torch.Tensor, num_new: int) -> list[int]:
    # Neither side stops at an end token: all tokens are compared.
    limits = {"max_new_tokens": num_new, "min_new_tokens": num_new, "eos_token_id": None}
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=2, **limits
    )
    answer: list[int] = out[0, ids.shape[1] :].tolist()
    return answer


def test_logits(ours: Model, theirs: tuple[Any, Any]) -> None:
    model, tokenizer = theirs
    with torch.inference_mode():
        for prompt in PROMPTS[:3]:
            ids = prompt_ids(tokenizer, prompt)
            assert (ours(ids) - model(ids).logits).abs().max() < 1e-3


def test_config(ours: Model, theirs: tuple[Any, Any]) -> None:
    expected = theirs[0].config
    assert ours.config.tie_word_embeddings
    assert ours.config.vocab_size == expected.vocab_size
    assert ours.config.layers[0].mixer.num_key_value_heads == expected.num_key_value_heads
    assert ours.config.max_position_embeddings == expected.max_position_embeddings


@pytest.mark.parametrize("prompt", PROMPTS[:2])
def test_greedy_answers_are_equal(ours: Model, theirs: tuple[Any, Any], prompt: str) -> None:
    ids = prompt_ids(theirs[1], prompt)
    assert greedy(ours, ids, NUM_NEW) == their_greedy(theirs[0], ids, NUM_NEW)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", PROMPTS[2:])
def test_greedy_answers_are_equal_on_more(
    ours: Model, theirs: tuple[Any, Any], prompt: str
) -> None:
    ids = prompt_ids(theirs[1], prompt)
    assert greedy(ours, ids, NUM_NEW) == their_greedy(theirs[0], ids, NUM_NEW)


def test_it_names_paris(ours: Model, theirs: tuple[Any, Any]) -> None:
    ids = prompt_ids(theirs[1], PROMPTS[0])
    assert "Paris" in theirs[1].decode(greedy(ours, ids, 16))

"""SmolLM2-135M-Instruct out of its Q4_1 GGUF, against transformers on the same file."""

from __future__ import annotations

from typing import Any

import pytest

from lmworks.inference.chat import load_chat
from lmworks.inference.engine import Engine
from lmworks.inference.sampling import Sampling

pytestmark = pytest.mark.weights

MAX_TOKENS = 64
QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain photosynthesis to a child.",
    "List three prime numbers.",
    "Who wrote Romeo and Juliet?",
    "Translate 'good morning' into Spanish.",
    "What is 12 times 12?",
    "Write a Python function that adds two numbers.",
    "Name the planets of the solar system.",
    "What causes rain?",
    "Give me a recipe for pancakes.",
    "Why is the sky blue?",
    "Summarise the story of Cinderella in two sentences.",
    "What is the difference between a virus and a bacterium?",
    "Write a polite email that declines an invitation.",
    "Schreibe einen Satz auf Deutsch.",
    "Wer hat Amerika entdeckt? 🌍",
    "def fibonacci(n):",
    "Tell me a joke.",
    "x",
]


@pytest.fixture(scope="module")
def chat():
    chat = load_chat("smollm2-135m")
    yield chat
    chat.close()


def messages(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def test_it_names_paris(chat):
    answer = chat.complete(messages(QUESTIONS[0]), temperature=0, max_tokens=20)
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"
    assert "<|im_end|>" not in answer.text


def test_a_seeded_answer_is_the_same_in_company(chat):
    def start(seed: int) -> Any:
        settings = {"seed": seed, "max_tokens": 24, "temperature": 0.8, "top_p": 0.95}
        return chat.stream(messages(QUESTIONS[2]), **settings)

    alone = "".join(delta.text for delta in start(11))
    others = [start(seed) for seed in (1, 2, 3)]
    assert "".join(delta.text for delta in start(11)) == alone
    for other in others:
        other.cancel()


@pytest.fixture(scope="module")
def expected(chat) -> list[list[int]]:
    """What transformers generates, one prompt at a time, float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from lmworks.core.gguf import find_gguf
    from lmworks.core.references import resolve

    path = find_gguf(resolve("smollm2-135m").path)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    answers = []
    for question in QUESTIONS:
        ids = torch.tensor([chat.engine.tokenizer.encode_chat(messages(question))])
        with torch.no_grad():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=MAX_TOKENS,
                do_sample=False,
                eos_token_id=sorted(chat.engine.eos_token_ids),
                pad_token_id=0,
            )
        answers.append(out[0, ids.shape[1] :].tolist())
    return answers


def greedy(engine: Engine) -> list[list[int]]:
    """All questions at once, so that every batch size occurs."""
    sampling = Sampling(temperature=0, max_tokens=MAX_TOKENS)
    prompts = [engine.tokenizer.encode_chat(messages(question)) for question in QUESTIONS]
    streams = [engine.submit(ids, sampling) for ids in prompts]
    return [[event.token_id for event in stream] for stream in streams]


@pytest.mark.slow
def test_greedy_equals_transformers_in_float32(chat, expected):
    from lmworks.models.load import load_model

    with Engine(load_model("smollm2-135m"), chat.engine.tokenizer) as engine:
        assert greedy(engine) == expected


@pytest.mark.slow
def test_greedy_equals_transformers_with_packed_weights(chat, expected):
    assert greedy(chat.engine) == expected


@pytest.mark.slow
def test_32_at_once_with_pages_for_a_third_of_them_equal_transformers(chat, expected):
    questions = [*range(len(QUESTIONS)), *range(12)]
    tokenizer = chat.engine.tokenizer
    with Engine(
        chat.engine.model, tokenizer, max_batch=32, max_positions=256, cache_tokens=1024
    ) as engine:
        sampling = Sampling(temperature=0, max_tokens=MAX_TOKENS)
        prompts = [tokenizer.encode_chat(messages(QUESTIONS[i])) for i in questions]
        streams = [engine.submit(ids, sampling) for ids in prompts]
        assert [[event.token_id for event in s] for s in streams] == [
            expected[i] for i in questions
        ]
        assert engine.statistics.preemptions > 0
        assert engine.statistics.cached_prompt_tokens > 0

"""The engine over a stretched model: as before within the native window, right beyond it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tests.inference.driving import NO_END, greedy, prompt, reference

from lmworks.inference.engine import Engine
from lmworks.models.cache import KVCache
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig, RoPEConfig
from lmworks.models.context_scaling import extended
from lmworks.models.fused_step import why_not_fused
from lmworks.models.model import Model
from lmworks.models.skeleton import skeleton

NATIVE = 40


@pytest.fixture(scope="module")
def models() -> tuple[Model, Model]:
    """One of 40 positions, and the same stretched to 160."""
    config = ModelConfig.uniform(
        vocab_size=264,
        hidden_size=64,
        num_hidden_layers=2,
        mixer=AttentionConfig(
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, rope=RoPEConfig(theta=50.0)
        ),
        feed_forward=MLPConfig(intermediate_size=48),
        max_position_embeddings=NATIVE,
    )
    plain = Model(config).eval()
    plain.reset_parameters(torch.Generator().manual_seed(5))
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    longer = skeleton(extended(config, factor=4.0, ladder=True))
    longer.load_state_dict(plain.state_dict(), assign=True)
    assert not why_not_fused(longer)
    return plain, longer.eval()


def answered(stream: Any) -> list[tuple[int, float]]:
    return [(event.token_id, event.logprob.logprob) for event in stream]


def test_within_the_native_window_answers_and_their_chances_are_the_same_to_the_bit(
    models: tuple[Model, Model], tokenizer: Any
) -> None:
    found = []
    for model in models:
        with Engine(model, tokenizer, max_batch=3) as engine:
            settings = [
                (prompt(n, n), greedy(NATIVE - n, logprobs=0, logit_bias=NO_END)) for n in (5, 20)
            ]
            streams = [engine.submit(ids, how) for ids, how in settings]
            if model is models[1]:  # a longer one beside them
                engine.submit(prompt(3, 60), greedy(40, logit_bias=NO_END))
            found.append([answered(stream) for stream in streams])
    assert found[0] == found[1]
    assert [len(answer) for answer in found[0]] == [35, 20]


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize("cache_tokens", [None, 176])
def test_an_answer_that_outgrows_a_window_goes_on_as_if_all_had_come_at_once(
    models: tuple[Model, Model],
    tokenizer: Any,
    speculate: bool,
    cache_tokens: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = models[1]
    # What was read is read anew; keys alone are turned for nobody.
    monkeypatch.delattr("lmworks.models.rotary_regimes.Regimes.turn")
    repeated = prompt(7, 9) * 3
    prompts = [prompt(1, 30), repeated, prompt(2, 70), repeated]
    with Engine(model, tokenizer, max_batch=3, cache_tokens=cache_tokens) as engine:
        if speculate:
            engine.proposer = Guesser()
        streams = [engine.submit(ids, greedy(70, logit_bias=NO_END)) for ids in prompts]
        answers = [[event.token_id for event in stream] for stream in streams]
        assert engine.statistics.recomputed_tokens > 0
    for ids, answer in zip(prompts, answers):
        assert len(answer) == 70
        expected = reference_without_ends(model, ids, 70)
        assert answer == expected


class Guesser:
    """Proposes as much as it may, and is wrong."""

    num_bytes = 0

    def propose(self, requests: Any, most: Any) -> list[list[int]]:
        return [[5, 6, 7, 8][:count] for count in most]

    def stepped(self, *told: Any) -> None: ...

    def verified(self, *told: Any) -> None: ...

    def ended(self, request: Any) -> None: ...


def reference_without_ends(model: Any, ids: list[int], count: int) -> list[int]:
    found: list[int] = []
    for _ in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *found]]))[0, -1, :260]
        logits[:4] -= 100
        found.append(int(logits.argmax()))
    return found


def test_beginnings_are_used_again_within_their_window_alone(
    models: tuple[Model, Model], tokenizer: Any
) -> None:
    shared = prompt(11, 36)
    with Engine(models[1], tokenizer) as engine:
        for more, cached in ((3, 0), (3, 32), (20, 0), (30, 32), (60, 0)):
            ids = shared + [random.Random(more).randrange(4, 260) for _ in range(more)]
            stream = engine.submit(ids, greedy(2))
            assert [e.token_id for e in stream] == reference(models[1], ids, 2)
            assert stream.cached_tokens == cached


def test_rows_on_both_sides_of_a_bound_do_not_see_each_other(models: tuple[Model, Model]) -> None:
    model = models[1]
    cache = KVCache(model.config, 2, 160)
    rows = [torch.tensor([prompt(1, 70)]), torch.tensor([prompt(2, 12)])]
    with torch.no_grad():
        for slot, row in enumerate(rows):
            cache.expect(slot, row.shape[1])
            model(row[:, :-1], cache=cache.view([slot]))
        both = model(torch.cat([row[:, -1:] for row in rows]), cache=cache.view([0, 1]))
        for row, got in zip(rows, both):
            assert (got - model(row, last_only=True)[0]).abs().max() < 1e-3

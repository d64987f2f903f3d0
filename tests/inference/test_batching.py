"""Requests that share pages, leave and come back: the same tokens as each alone."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.inference.driving import NO_END, Gate, greedy, ids, prompt, reference, wait_until
from tests.models.parity import randomised, their_greedy

from lmworks.core.errors import UserError
from lmworks.inference import streams as streams_module
from lmworks.inference.engine import Engine
from lmworks.inference.sampling import Sampling
from lmworks.inference.streams import DeadlineExceeded, EngineClosed, GenerationError, Stream
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
from lmworks.models.fused_step import why_not_fused
from lmworks.models.load import load_model
from lmworks.models.model import Model

SIZES: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 192,
    "tie_word_embeddings": True,
}
FAMILIES = {
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gemma": ("GemmaConfig", {"head_dim": 32, "num_key_value_heads": 1}),
    # Windows and capped scores: no page is shared or read in place, and all the rest holds.
    "gemma2": ("Gemma2Config", {"head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16}),
}


def all_free(engine: Engine) -> bool:
    """Whether only the tree holds pages; and none when it lets go."""
    pool = engine._cache.pool
    tree = engine.prefixes
    held = 0 if tree is None else len(tree)
    idle = engine.num_running == engine.num_waiting == 0
    return idle and pool.num_pages - pool.num_free == held and sum(pool.counts) == held


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache_tokens", [None, 400])
def test_32_at_once_say_what_transformers_says_to_each(
    family: str, cache_tokens: int | None, tmp_path: Path, tokenizer: Any
) -> None:
    transformers = pytest.importorskip("transformers")
    name, settings = FAMILIES[family]
    torch.manual_seed(3)
    theirs = randomised(
        transformers.AutoModelForCausalLM.from_config(
            getattr(transformers, name)(**SIZES | settings), attn_implementation="eager"
        )
    )
    theirs.save_pretrained(tmp_path)
    beginnings = [prompt(seed, 40) for seed in range(2)]
    prompts = [(beginnings[i % 2] + prompt(i, 50))[: (45, 7, 60, 20)[i % 4]] for i in range(32)]
    wanted: dict[int, list[int]] = {}
    for rest in range(4):
        rows = torch.tensor([prompts[i] for i in range(rest, 32, 4)])
        for i, tokens in zip(range(rest, 32, 4), their_greedy(theirs, rows, 24), strict=True):
            end = next((at + 1 for at, token in enumerate(tokens) if token in (0, 2)), 24)
            wanted[i] = tokens[:end]
    model = load_model(tmp_path)
    with Engine(
        model, tokenizer, max_batch=32, cache_tokens=cache_tokens, turn_tokens=200
    ) as engine:
        alone = ids(engine.submit(prompts[5], greedy(24)))
        streams = [engine.submit(p, greedy(24)) for p in prompts]
        found = [ids(stream) for stream in streams]
        assert found == [wanted[i] for i in range(32)]
        assert alone == wanted[5]
        assert max(engine.statistics.batch_size.snapshot()[0]) > 0
        shares = family != "gemma2"
        assert (engine.statistics.preemptions > 0) == (cache_tokens is not None)
        assert (engine.statistics.cached_prompt_tokens > 300) == shares
        assert all_free(engine)


def test_a_seeded_request_is_the_same_whoever_comes_and_goes(tiny_model, tokenizer):
    sampling = Sampling(seed=7, max_tokens=60, top_p=0.95, logit_bias=NO_END)
    with Engine(tiny_model, tokenizer) as engine:
        alone = ids(engine.submit(prompt(1, 50), sampling))
    with Engine(tiny_model, tokenizer, max_batch=6, cache_tokens=300) as engine:
        others = [engine.submit(prompt(i, 60), greedy(70)) for i in range(6)]
        stream = engine.submit(prompt(1, 50), sampling, priority=-1)
        others += [engine.submit(prompt(1, 49 + i), greedy(20), priority=1) for i in range(6)]
        assert ids(stream) == alone
        assert engine.statistics.preemptions > 0
        for other in others:
            ids(other)


def test_log_probabilities_are_the_same_to_the_bit_however_it_came_about(tokenizer):
    model = Model(
        ModelConfig.uniform(
            vocab_size=260,
            hidden_size=32,
            num_hidden_layers=2,
            mixer=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=16),
            feed_forward=MLPConfig(intermediate_size=48),
            max_position_embeddings=192,
        )
    ).eval()
    model.reset_parameters(torch.Generator().manual_seed(5))
    assert not why_not_fused(model)
    sampling = Sampling(seed=7, max_tokens=50, logprobs=0, logit_bias=NO_END)

    def said(stream: Stream) -> list[tuple[int, float]]:
        return [(event.token_id, event.logprob.logprob) for event in stream]

    with Engine(model, tokenizer, prefix_tokens=0) as engine:
        alone = said(engine.submit(prompt(1, 70), sampling))
    with Engine(model, tokenizer, max_batch=5, cache_tokens=300) as engine:
        others = [engine.submit(prompt(1, 50 + i), greedy(60)) for i in range(6)]
        stream = engine.submit(prompt(1, 70), sampling, priority=-1)
        others += [engine.submit(prompt(i, 49), greedy(40), priority=1) for i in range(6)]
        assert said(stream) == alone
        assert engine.statistics.recomputed_tokens > 0
        assert stream.cached_tokens > 0
        for other in others:
            ids(other)


def test_drawn_tokens_follow_the_plain_softmax(tiny_model, tokenizer):
    scipy_stats = pytest.importorskip("scipy.stats")
    count, start = 900, prompt(4, 21)
    with Engine(tiny_model, tokenizer, max_batch=32, max_waiting=count, turn_tokens=512) as engine:
        streams = [
            engine.submit(start, Sampling(seed=i, temperature=2.0, max_tokens=2))
            for i in range(count)
        ]
        drawn = [ids(stream) for stream in streams]
        assert engine.statistics.cached_prompt_tokens >= 16 * (count - 40)
    with torch.no_grad():
        first = tiny_model(torch.tensor([start]))[0, -1, :260]
        second = tiny_model(torch.tensor([[*start, token] for token in range(260)]))[:, -1, :260]
    begun = [tokens[0] for tokens in drawn if len(tokens) > 1]
    for logits, tokens in (
        (first.expand(count, -1), [tokens[0] for tokens in drawn]),
        (second[begun], [tokens[1] for tokens in drawn if len(tokens) > 1]),
    ):
        seen = np.bincount(tokens, minlength=260)
        expected = torch.softmax(logits.double() / 2, -1).sum(0).numpy()
        rare = expected < 5  # together one group
        seen, expected = (np.append(of[~rare], of[rare].sum()) for of in (seen, expected))
        assert len(seen) > 20
        assert scipy_stats.chi2.sf(((seen - expected) ** 2 / expected).sum(), len(seen) - 1) > 0.001


def test_a_known_beginning_is_not_read_again(tiny_model, tokenizer):
    gate = Gate(tiny_model)
    gate.tickets.release(10_000)
    long = prompt(1, 150)
    with Engine(gate, tokenizer) as engine:
        first = engine.submit(long, greedy(3, logit_bias=NO_END))
        ids(first)
        assert first.cached_tokens == 0
        gate.shapes.clear()
        second = engine.submit([*long[:120], *prompt(2, 9)], greedy(3))
        assert ids(second) == reference(tiny_model, [*long[:120], *prompt(2, 9)], 3)
        assert second.cached_tokens == 112
        assert gate.shapes[:2] == [(1, 16), (1, 1)]  # up to the next bound of chunks, then on
        third = engine.submit(long[:112], greedy(3))
        ids(third)
        assert third.cached_tokens == 96  # the last token has to be read
        statistics = engine.statistics
        assert statistics.prompt_tokens == 150 + 129 + 112
        assert statistics.cached_prompt_tokens == 112 + 96
    with Engine(tiny_model, tokenizer, prefix_tokens=0) as engine:
        for _ in range(2):
            stream = engine.submit(long, greedy(3))
            ids(stream)
            assert stream.cached_tokens == 0
        assert engine._cache.pool.num_free == engine._cache.pool.num_pages


def test_answers_are_beginnings_too(tiny_model, tokenizer):
    with Engine(tiny_model, tokenizer) as engine:
        asked = prompt(1, 20)
        said = ids(engine.submit(asked, greedy(40, logit_bias=NO_END)))
        following = engine.submit([*asked, *said, *prompt(3, 10)], greedy(8))
        assert ids(following) == reference(tiny_model, [*asked, *said, *prompt(3, 10)], 8)
        assert following.cached_tokens == 48  # of the 59 that had been read


def test_prompts_that_come_together_are_read_once(tiny_model, tokenizer):
    gate = Gate(tiny_model)
    with Engine(gate, tokenizer, max_batch=4) as engine:
        streams = [engine.submit(prompt(1, 100), greedy(4)) for _ in range(4)]
        gate.tickets.release(10_000)
        found = [ids(stream) for stream in streams]
        assert found == [reference(tiny_model, prompt(1, 100), 4)] * 4
        assert [stream.cached_tokens for stream in streams] == [0, 96, 96, 96]


def test_the_tree_keeps_no_more_than_it_may(tiny_model, tokenizer):
    with Engine(tiny_model, tokenizer, max_batch=2, prefix_tokens=64) as engine:
        for i in range(6):
            ids(engine.submit(prompt(i, 60), greedy(2)))
            assert len(engine.prefixes) <= 4
        assert all_free(engine)
        engine.prefixes.forget()
        assert engine._cache.pool.num_free == engine._cache.pool.num_pages


# --- whose turn it is ---


@pytest.fixture
def gate(tiny_model: Any) -> Gate:
    return Gate(tiny_model)


@contextlib.contextmanager
def gated(gate: Gate, tokenizer: Any, **settings: Any) -> Iterator[Engine]:
    engine = Engine(gate, tokenizer, **settings)
    try:
        yield engine
    finally:
        gate.tickets.release(100_000)
        engine.close()


def order_of_ends(engine: Engine, gate: Gate, streams: dict[str, Stream]) -> list[str]:
    """The names of the streams as they end, one step at a time."""
    ended: list[str] = []
    for _ in range(2000):
        for name, stream in streams.items():
            if name not in ended and engine.num_running + engine.num_waiting < len(streams) - len(
                ended
            ):
                unread = stream._events.qsize()
                events = [stream._events.get() for _ in range(unread)]
                for event in events:
                    stream._events.put(event)
                if events and getattr(events[-1], "finish_reason", None):
                    ended.append(name)
        if len(ended) == len(streams):
            return ended
        calls = gate.num_calls
        gate.tickets.release(1)
        # Between two requests none runs for a moment: what ended is told when the next step begins.
        wait_until(
            lambda calls=calls: (
                gate.num_calls > calls or engine.num_running + engine.num_waiting == 0
            )
        )
    raise AssertionError(f"only {ended} ended")


def test_higher_priority_first_then_who_came_first(gate, tokenizer):
    with gated(gate, tokenizer, max_batch=1) as engine:
        streams = {"first": engine.submit(prompt(0, 4), greedy(1))}
        wait_until(lambda: gate.num_calls == 1)
        for name, priority in (("low", -1), ("early", 0), ("late", 0), ("high", 3)):
            streams[name] = engine.submit(prompt(1, 4), greedy(1), priority=priority)
        ended = order_of_ends(engine, gate, streams)
        # It was running, gave way to the higher one, and came back before its equals.
        assert ended in (
            ["first", "high", "early", "late", "low"],
            ["high", "first", "early", "late", "low"],
        )


def test_a_higher_priority_takes_the_slot_of_a_lower_one(gate, tokenizer, tiny_model):
    with gated(gate, tokenizer, max_batch=1) as engine:
        low = engine.submit(prompt(1, 30), greedy(40, logit_bias=NO_END))
        gate.tickets.release(10)
        for _ in range(8):
            next(low)
        high = engine.submit(prompt(2, 5), greedy(3, logit_bias=NO_END), priority=1)
        gate.tickets.release(10_000)
        assert len(ids(high)) == 3
        assert engine.statistics.completion_tokens < 48
        rest = ids(low)
        assert len(rest) == 32
        assert engine.statistics.preemptions == 1
        assert engine.statistics.recomputed_tokens < 16  # the rest was in the tree
    with Engine(tiny_model, tokenizer) as engine:
        assert ids(engine.submit(prompt(1, 30), greedy(40, logit_bias=NO_END)))[8:] == rest


def test_clients_are_served_in_turn_not_in_order(gate, tokenizer):
    with gated(gate, tokenizer, max_batch=1) as engine:
        streams = {"a0": engine.submit(prompt(0, 4), greedy(2, logit_bias=NO_END), client="a")}
        wait_until(lambda: gate.num_calls == 1)
        for i in range(1, 5):
            sampling = greedy(2, logit_bias=NO_END)
            streams[f"a{i}"] = engine.submit(prompt(i, 4), sampling, client="a")
        for i in range(2):
            sampling = greedy(2, logit_bias=NO_END)
            streams[f"b{i}"] = engine.submit(prompt(9 + i, 4), sampling, client="b")
        ended = order_of_ends(engine, gate, streams)
        assert ended.index("b0") <= 2 and ended.index("b1") <= 4  # and not behind all of a's
        assert [name for name in ended if name[0] == "a"] == ["a0", "a1", "a2", "a3", "a4"]


def test_a_reader_who_falls_behind_pauses_and_gives_its_slot_away(
    tiny_model, tokenizer, monkeypatch
):
    monkeypatch.setattr(streams_module, "MOST_UNREAD", 10)
    with Engine(tiny_model, tokenizer, max_batch=1) as engine:
        slow = engine.submit(prompt(1, 10), greedy(60, logit_bias=NO_END))
        wait_until(lambda: slow._events.qsize() == 10)
        assert len(ids(engine.submit(prompt(2, 10), greedy(9, logit_bias=NO_END)))) == 9
        assert slow._events.qsize() == 10
        assert ids(slow) == reference(tiny_model, prompt(1, 10), 60)
        assert engine.statistics.preemptions == 1
        assert all_free(engine)


def test_time_runs_out_for_those_who_run_and_those_who_wait(gate, tokenizer):
    with gated(gate, tokenizer, max_batch=1) as engine:
        running = engine.submit(prompt(1, 4), greedy(100, logit_bias=NO_END), timeout_s=0.3)
        waiting = engine.submit(prompt(2, 4), greedy(100), timeout_s=0.2)
        other = engine.submit(prompt(3, 4), greedy(2, logit_bias=NO_END))
        gate.tickets.release(3)
        next(running)
        wait_until(lambda: gate.num_calls == 4)
        import time

        time.sleep(0.4)
        gate.tickets.release(1000)
        for stream in (running, waiting):
            with pytest.raises(DeadlineExceeded, match=r"within 0\.[23] s"):
                ids(stream)
        assert len(ids(other)) == 2
        with pytest.raises(UserError, match="timeout_s must be above 0"):
            engine.submit(prompt(1, 4), timeout_s=0)


def test_a_paused_request_runs_out_of_time_too(tiny_model, tokenizer, monkeypatch):
    monkeypatch.setattr(streams_module, "MOST_UNREAD", 4)
    with Engine(tiny_model, tokenizer, max_batch=1) as engine:
        engine.submit(prompt(1, 10), greedy(60, logit_bias=NO_END), timeout_s=0.3)
        wait_until(lambda: engine.statistics.finished["cancelled"] == 1)
        assert all_free(engine)


def test_storms_of_cancels_leave_all_pages_free(tiny_model, tokenizer):
    generator = random.Random(11)
    with Engine(
        tiny_model, tokenizer, max_batch=8, cache_tokens=256, prefix_tokens=128, max_waiting=500
    ) as engine:
        streams = []
        for i in range(150):
            length = generator.randrange(1, 120)
            sampling = Sampling(max_tokens=generator.randrange(1, 40), seed=i)
            priority, client = generator.randrange(3), "abc"[i % 3]
            streams.append(
                engine.submit(prompt(i % 7, length), sampling, priority=priority, client=client)
            )
            if generator.random() < 0.4:
                generator.choice(streams).cancel()
        for i, stream in enumerate(streams):
            if i % 3 == 0:
                next(stream, None)
                stream.cancel()
            elif not stream.cancelled:
                assert ids(stream)
        wait_until(lambda: all_free(engine))
        assert len(engine.prefixes) <= 8
        assert engine.statistics.preemptions > 0
        assert sum(engine.statistics.finished.values()) == 150
        assert engine._scheduler.num_free_slots == 8


# --- the places for others ---


class Scaled:
    """Adapters that multiply the embedding: a change that every key and value shows."""

    def __init__(self, model: Any) -> None:
        self.model, self.names = model, {"double": 2.0, "half": 0.5}

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def groups(self, names: Any) -> list[list[int]]:
        return [[row for row, n in enumerate(names) if n == name] for name in sorted(set(names))]

    @contextlib.contextmanager
    def active(self, names: Any) -> Iterator[Any]:
        weight = self.model.embed_tokens.weight
        (factor,) = {self.names.get(name, 1.0) for name in names}
        with torch.no_grad():
            weight.mul_(factor)
            yield self.model
            weight.mul_(1 / factor)


def test_requests_of_several_adapters_share_the_engine_and_no_pages(tiny_model, tokenizer):
    adapters = Scaled(tiny_model)
    names = ["", "double", "half", "double", ""]
    expected = {}
    for name in set(names):
        with adapters.active([name]):
            expected[name] = reference(tiny_model, prompt(1, 40), 12)
    assert len({tuple(tokens) for tokens in expected.values()}) == 3
    with Engine(tiny_model, tokenizer, adapters=adapters) as engine:
        streams = [engine.submit(prompt(1, 40), greedy(12), adapter=name) for name in names]
        assert [ids(stream) for stream in streams] == [expected[name] for name in names]
        assert [stream.cached_tokens for stream in streams] == [0, 0, 0, 32, 32]
        with pytest.raises(UserError, match="no adapter 'tripple'"):
            engine.submit(prompt(1, 4), adapter="tripple")


class Counting:
    """A grammar: the bytes b, c, d in turn, `count` of them."""

    def __init__(self, tokenizer: Any, count: int) -> None:
        self.letters = tokenizer.encode("bcd")
        self.stream_decoder = tokenizer.stream_decoder
        self.count, self.at, self.finished = count, 0, False

    def allowed_mask(self) -> np.ndarray:
        mask = np.zeros(260, dtype=bool)
        mask[self.letters[self.at % 3]] = True
        return mask

    def accept(self, token_id: int) -> None:
        assert token_id == self.letters[self.at % 3]
        self.at += 1
        self.finished = self.at == self.count


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_says_what_may_come_and_when_it_is_over(engine, tokenizer, temperature):
    sampling = Sampling(temperature=temperature, max_tokens=50)
    stream = engine.submit(prompt(1, 4), sampling, grammar=Counting(tokenizer, 7))
    events = list(stream)
    assert "".join(event.text for event in events) == "bcdbcdb"
    assert events[-1].finish_reason == "stop"


class Guesses:
    """Proposes what comes next by the truth, wrong now and then."""

    def __init__(self, truth: dict[tuple[int, ...], list[int]], wrong_every: int) -> None:
        self.truth, self.wrong_every = truth, wrong_every
        self.asked = self.accepted = self.proposed = 0
        self.ended_requests = 0

    def stepped(self, num_requests: int, num_new: int, seconds: float) -> None:
        assert seconds > 0

    def propose(self, requests: Any, most: Any) -> list[list[int]]:
        found = []
        for request, count in zip(requests, most, strict=True):
            self.asked += 1
            said = self.truth[tuple(request.token_ids[: request.num_prompt])]
            guess = said[request.num_generated :][: min(count, self.asked % 5)]
            if self.asked % self.wrong_every == 0 and guess:
                guess = [*guess[:-1], (guess[-1] + 1) % 260]
            found.append(guess)
        return found

    def verified(self, request: Any, num_proposed: int, num_accepted: int) -> None:
        self.proposed += num_proposed
        self.accepted += num_accepted

    def ended(self, request: Any) -> None:
        self.ended_requests += 1


@pytest.mark.parametrize("cache_tokens", [None, 208])
@pytest.mark.parametrize("settings", [{"temperature": 0}, {"seed": 4, "presence_penalty": 0.5}])
def test_proposals_change_nothing_but_the_number_of_steps(
    tiny_model, tokenizer, settings, cache_tokens
):
    prompts = [prompt(i, 9 + 13 * i) for i in range(5)]
    sampling = Sampling(max_tokens=40, logit_bias=NO_END, **settings)
    with Engine(tiny_model, tokenizer) as engine:
        plain = [ids(engine.submit(p, sampling)) for p in prompts]
    guesses = Guesses(dict(zip(map(tuple, prompts), plain, strict=True)), 3)
    gate = Gate(tiny_model)
    gate.tickets.release(100_000)
    with Engine(gate, tokenizer, max_batch=3, cache_tokens=cache_tokens) as engine:
        engine.proposer = guesses
        streams = [engine.submit(p, sampling) for p in prompts]
        assert [ids(stream) for stream in streams] == plain
        statistics = engine.statistics
        assert all_free(engine)
    assert max(t for _, t in gate.shapes if _ > 1) > 1
    assert (statistics.proposed_tokens, statistics.accepted_tokens) == (
        guesses.proposed,
        guesses.accepted,
    )
    assert 0 < guesses.accepted < guesses.proposed
    assert guesses.ended_requests == 5 + statistics.preemptions


def test_nobody_waits_for_ever_when_a_turn_fails(tiny_model, tokenizer, monkeypatch):
    with Engine(tiny_model, tokenizer, max_batch=2) as engine:
        monkeypatch.setattr(engine._scheduler, "charge", lambda *_: 1 / 0)
        streams = [engine.submit(prompt(i, 9), greedy(9, logit_bias=NO_END)) for i in range(4)]
        for stream in streams:
            with pytest.raises(GenerationError, match="ZeroDivisionError"):
                ids(stream)
        monkeypatch.undo()
        assert len(ids(engine.submit(prompt(1, 9), greedy(9, logit_bias=NO_END)))) == 9
        assert all_free(engine)
        monkeypatch.setattr(engine._cache, "free", lambda *_: 1 / 0)  # not even an end is possible
        monkeypatch.setattr(engine._scheduler, "charge", lambda *_: 1 / 0)
        with pytest.raises((GenerationError, EngineClosed)):
            ids(engine.submit(prompt(1, 9), greedy(9, logit_bias=NO_END)))
        with pytest.raises(EngineClosed):
            engine.submit(prompt(1, 9))
        engine._thread.join(timeout=10)
        assert not engine._thread.is_alive()


@pytest.mark.parametrize(
    "sizes",
    [{"cache_tokens": 100}, {"turn_tokens": 0}, {"prefix_tokens": -1}],
)
def test_sizes_that_can_not_work_are_refused(tiny_model, tokenizer, sizes):
    with pytest.raises(UserError, match=next(iter(sizes))):
        Engine(tiny_model, tokenizer, **sizes)


def test_figures_of_the_state(tiny_model, tokenizer):
    gate = Gate(tiny_model)
    with gated(gate, tokenizer, max_batch=2) as engine:
        streams = [engine.submit(prompt(i, 40), greedy(30, logit_bias=NO_END)) for i in range(3)]
        gate.tickets.release(8)
        wait_until(lambda: gate.num_calls == 9)
        statistics = engine.statistics
        assert (statistics.running, statistics.queue_length) == (2, 1)
        assert statistics.num_pages == 24
        assert statistics.pages_in_use == 6
        gate.tickets.release(10_000)
        for stream in streams:
            ids(stream)
        wait_until(lambda: statistics.running == 0)
        assert statistics.prefix_pages == statistics.pages_in_use == len(engine.prefixes)
        assert statistics.queue_wait_s.snapshot()[0][-1] == 3
        assert statistics.batch_size.snapshot()[0][1] >= statistics.batch_size.snapshot()[0][0]

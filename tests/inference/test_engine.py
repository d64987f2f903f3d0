from __future__ import annotations

import random
import threading
from typing import Any

import pytest
import torch
from tests.inference.driving import NO_END, Gate, greedy, ids, prompt, reference, wait_until

from lmworks.core.errors import UserError
from lmworks.inference import steps as steps_module
from lmworks.inference.engine import Engine
from lmworks.inference.sampling import Choice, InvalidParameter, Sampler, Sampling
from lmworks.inference.streams import (
    EngineClosed,
    GenerationError,
    PromptTooLong,
    QueueFull,
    Stream,
    TokenEvent,
)


def test_greedy_in_a_mixed_batch_equals_a_loop_without_cache(engine, tiny_model, monkeypatch):
    monkeypatch.setattr(steps_module, "PREFILL_CHUNK", 7)
    prompts = [prompt(i, length) for i, length in enumerate([1, 5, 40, 7, 14, 23, 2, 90, 11])]
    streams = [engine.submit(p, greedy(10 + i)) for i, p in enumerate(prompts)]
    for i, (p, stream) in enumerate(zip(prompts, streams, strict=True)):
        assert ids(stream) == reference(tiny_model, p, 10 + i), i


def test_a_seeded_request_is_the_same_in_any_company(engine):
    def run(seed: int) -> Stream:
        return engine.submit(prompt(1, 12), Sampling(seed=seed, max_tokens=30, top_p=0.95))

    alone = ids(run(7))
    others = [engine.submit(prompt(i, 3 + 5 * i), Sampling(max_tokens=20 + i)) for i in range(6)]
    assert ids(run(7)) == alone
    assert ids(run(8)) != alone
    for other in others:
        ids(other)


def test_ends_at_max_tokens_or_at_the_context(engine):
    events = list(engine.submit(prompt(1, 10), greedy(5, logit_bias=NO_END)))
    assert [event.finish_reason for event in events] == [None] * 4 + ["length"]
    events = list(engine.submit(prompt(1, 190), greedy(None, logit_bias=NO_END)))
    assert len(events) == 2 and events[-1].finish_reason == "length"
    assert engine.num_running == 0


@pytest.mark.parametrize("end", [0, 2, 77])
def test_ends_at_every_end_token(tiny_model, tokenizer, end):
    with Engine(tiny_model, tokenizer, eos_token_ids=[77]) as engine:
        events = list(engine.submit(prompt(1, 4), greedy(logit_bias={end: 100.0})))
    assert [(e.token_id, e.text, e.finish_reason) for e in events] == [(end, "", "stop")]


def test_ids_beyond_the_tokenizer_are_never_sampled(engine):
    with pytest.raises(InvalidParameter, match="logit_bias: token id 261"):
        engine.submit(prompt(1, 4), Sampling(logit_bias={261: 1.0}))
    produced = ids(engine.submit(prompt(1, 4), Sampling(temperature=50.0, seed=0, max_tokens=180)))
    assert max(produced) < 260


def test_text_is_whole_characters_without_special_tokens(scripted, tokenizer):
    first, second = tokenizer.encode("é")
    events = scripted([first, 1, second, 3, first, 2])
    assert [event.text for event in events] == ["", "", "é", "", "", "�"]
    assert events[-1].finish_reason == "stop"


@pytest.fixture
def scripted(engine, monkeypatch):
    """Runs a request whose sampler gives these ids, whatever the model says."""

    def run(script: list[int], **settings: Any) -> list[TokenEvent]:
        remaining = iter(script)
        monkeypatch.setattr(Sampler, "pick", lambda *_: Choice(token_id=next(remaining)))
        return list(engine.submit(prompt(0, 3), Sampling(max_tokens=len(script), **settings)))

    return run


def test_a_stop_string_across_tokens_never_leaks(scripted, tokenizer):
    script = tokenizer.encode("one\nUser: two")
    events = scripted(script, stop=("\nUser:", "zzz"))
    assert "".join(event.text for event in events) == "one"
    assert events[-1].finish_reason == "stop"
    assert len(events) == len("one\nUser:")
    cut = scripted(script[:7], stop="\nUser:")
    assert "".join(event.text for event in cut) == "one\nUse"  # never became one: shown at the end
    assert cut[-1].finish_reason == "length"


def test_too_long_a_prompt_names_both_numbers(engine):
    with pytest.raises(PromptTooLong, match="192 tokens and the context holds 192") as caught:
        engine.submit(prompt(1, 192))
    assert (caught.value.prompt_tokens, caught.value.max_positions) == (192, 192)
    assert len(ids(engine.submit(prompt(1, 191), greedy(None)))) == 1


@pytest.mark.parametrize("bad", [[], [264], [-1]])
def test_bad_ids_are_refused(engine, bad):
    with pytest.raises(UserError):
        engine.submit(bad)


def test_bad_sizes_are_refused(tiny_model, tokenizer):
    for sizes in ({"max_batch": 0}, {"max_positions": 1}, {"max_positions": 193}):
        with pytest.raises(UserError, match=next(iter(sizes))):
            Engine(tiny_model, tokenizer, **sizes)


@pytest.fixture
def gate(tiny_model):
    return Gate(tiny_model)


@pytest.fixture
def gated(gate, tokenizer):
    engine = Engine(gate, tokenizer, max_batch=2, max_waiting=3)
    yield engine
    gate.tickets.release(10_000)
    engine.close()


def test_cancel_frees_the_slot_and_ends_the_stream_at_once(gated, gate):
    streams = [gated.submit(prompt(i, 4), greedy(100, logit_bias=NO_END)) for i in range(3)]
    gate.tickets.release(6)
    next(streams[0])
    wait_until(lambda: gated.num_running == 2 and gated.num_waiting == 1)
    streams[2].cancel()
    assert gated.num_waiting == 0  # a waiting one goes without any step
    streams[0].cancel()
    assert list(streams[0]) == []  # no step is needed for the reader to be let go
    gate.tickets.release(1)
    wait_until(lambda: gated.num_running == 1)
    streams[1].cancel()
    streams[1].cancel()
    gate.tickets.release(2)
    wait_until(lambda: gated.num_running == 0)
    assert gated.statistics.finished["cancelled"] == 3
    assert gated._cache.lengths == [0, 0]


def test_cancel_lets_a_reader_go_that_waits(gated, gate):
    stream = gated.submit(prompt(1, 4), greedy(10))
    read: list[Any] = []
    reader = threading.Thread(target=lambda: read.append(list(stream)))
    reader.start()
    wait_until(lambda: gate.num_calls == 1)
    stream.cancel()
    reader.join(timeout=5)
    assert read == [[]]


def test_a_long_prompt_lets_running_streams_go_on(gated, gate, monkeypatch):
    monkeypatch.setattr(steps_module, "PREFILL_CHUNK", 10)
    gate.tickets.release(10_000)
    first = gated.submit(prompt(1, 4), greedy(150, logit_bias=NO_END))
    next(first)
    second = gated.submit(prompt(2, 100), greedy(1))
    ids(second)
    chunks = [i for i, shape in enumerate(gate.shapes) if shape == (1, 10)]
    assert len(chunks) == 10
    between = [gate.shapes[i + 1] for i in chunks[:-1]]
    assert between == [(1, 1)] * 9  # after each chunk a step for the stream that runs
    first.cancel()


def test_the_queue_has_an_end(gated, gate):
    streams = [gated.submit(prompt(0, 4), greedy(2))]
    wait_until(lambda: gated.num_running == 1)
    streams += [gated.submit(prompt(i, 4), greedy(2)) for i in range(3)]
    with pytest.raises(QueueFull, match="3 requests are waiting"):
        gated.submit(prompt(9, 4), greedy(2))
    gate.tickets.release(1000)
    assert [len(ids(stream)) for stream in streams] == [2] * 4


def test_a_failing_step_fails_its_requests_and_not_the_engine(gated, gate):
    streams = [gated.submit(prompt(i, 4), greedy(50, logit_bias=NO_END)) for i in range(2)]
    gate.tickets.release(4)
    for stream in streams:
        next(stream)
    gate.fail = True
    gate.tickets.release(1000)
    for stream in streams:
        with pytest.raises(GenerationError, match="MemoryError: no memory") as caught:
            ids(stream)
        assert isinstance(caught.value.__cause__, MemoryError)
        assert list(stream) == []
    gate.fail = False
    assert len(ids(gated.submit(prompt(1, 4), greedy(5, logit_bias=NO_END)))) == 5
    assert gated.statistics.finished["error"] == 2


def test_logits_that_are_not_numbers_fail_their_request(gated, gate):
    gate.tickets.release(1000)
    gate.scale = float("nan")
    with pytest.raises(GenerationError, match="not finite"):
        ids(gated.submit(prompt(1, 4), greedy(3)))
    gate.scale = 1.0
    assert len(ids(gated.submit(prompt(1, 4), greedy(3, logit_bias=NO_END)))) == 3


def test_close_ends_waiting_and_running_requests(gated, gate):
    streams = [gated.submit(prompt(i, 4), greedy(100, logit_bias=NO_END)) for i in range(3)]
    wait_until(lambda: gate.num_calls == 1)
    threading.Timer(0.05, lambda: gate.tickets.release(1000)).start()
    gated.close()
    gated.close()
    assert not gated._thread.is_alive()
    for stream in streams:
        with pytest.raises(EngineClosed):
            ids(stream)
    with pytest.raises(EngineClosed):
        gated.submit(prompt(1, 4))


def test_statistics_count_tokens_and_times(engine):
    streams = [engine.submit(prompt(i, 10 + i), greedy(6, logit_bias=NO_END)) for i in range(5)]
    for stream in streams:
        ids(stream)
    statistics = engine.statistics
    assert statistics.prompt_tokens == sum(10 + i for i in range(5))
    assert statistics.completion_tokens == 30
    assert statistics.finished == {"stop": 0, "length": 5, "cancelled": 0, "error": 0}
    assert statistics.ttft_s.snapshot()[0][-1] == 5
    assert statistics.itl_s.snapshot()[0][-1] == 25
    assert engine.cache_bytes > 0


def test_logprobs_are_of_the_plain_distribution(engine, tiny_model):
    events = list(
        engine.submit(prompt(3, 6), Sampling(temperature=0.3, seed=1, max_tokens=3, logprobs=4))
    )
    with torch.no_grad():
        logits = tiny_model(torch.tensor([prompt(3, 6)]))[0, -1, :260]
    expected = torch.log_softmax(logits.double(), 0)
    first = events[0].logprob
    assert first is not None and first.token_id == events[0].token_id
    assert first.logprob == pytest.approx(float(expected[first.token_id]), abs=1e-5)
    assert [value for _, value in first.top] == pytest.approx(
        expected.topk(4).values.tolist(), abs=1e-5
    )


def test_many_requests_with_random_lengths_and_cancels_leave_all_slots_free(engine):
    generator = random.Random(3)
    streams = []
    for i in range(40):
        sampling = Sampling(max_tokens=generator.randrange(1, 40), seed=i)
        streams.append(engine.submit(prompt(i, generator.randrange(1, 60)), sampling))
    for i, stream in enumerate(streams):
        if i % 3 == 0:
            stream.cancel()
        elif i % 3 == 1:
            next(stream)
            stream.cancel()
        else:
            assert ids(stream)
    wait_until(lambda: engine.num_running == 0 and engine.num_waiting == 0)
    assert engine._cache.lengths == [0] * 4
    assert engine._scheduler.num_free_slots == 4

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from lmworks.core.errors import UserError
from lmworks.inference.draft_model import DraftModel, EarlyExit, common_tokens, first_layers
from lmworks.inference.engine import Engine
from lmworks.inference.grammar import Grammar
from lmworks.inference.local import LocalChat
from lmworks.inference.prompt_lookup import PromptLookup
from lmworks.inference.sampling import Sampler, Sampling, probabilities
from lmworks.inference.speculative import Guess, Speculation, StepTimes, expected, speculation_for
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
from lmworks.models.model import Model

NO_END = {0: -100.0, 1: -100.0, 2: -100.0, 3: -100.0}
REPEATS = [60, 61, 62, 63, 64, 65, 66, 67] * 4


def small_model(seed: int, *, layers: int = 1, vocab_size: int = 264) -> Model:
    config = ModelConfig.uniform(
        vocab_size=vocab_size,
        hidden_size=16,
        num_hidden_layers=layers,
        mixer=AttentionConfig(num_attention_heads=2, num_key_value_heads=1, head_dim=8),
        feed_forward=MLPConfig(intermediate_size=32),
        max_position_embeddings=192,
    )
    model = Model(config).eval()
    model.reset_parameters(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6)
    return model


SOURCES = {
    "lookup": lambda engine: PromptLookup(),
    "a poor draft": lambda engine: DraftModel.beside(engine, small_model(9), 260),
    "a draft with fewer tokens": lambda engine: DraftModel.beside(
        engine, small_model(9, vocab_size=250), 250
    ),
    "itself": lambda engine: DraftModel.beside(engine, engine.model, 260),
    "early exit": lambda engine: EarlyExit.of(engine, "1"),
}
REQUESTS = [
    (REPEATS, Sampling(temperature=0, max_tokens=40, logit_bias=NO_END)),
    ([50, 51, 52], Sampling(temperature=0, max_tokens=21)),
    (REPEATS[:11], Sampling(seed=4, max_tokens=33, top_p=0.9)),
    ([90] * 150, Sampling(seed=5, max_tokens=30, temperature=0.5, top_k=4, logit_bias=NO_END)),
    (
        REPEATS,
        Sampling(
            temperature=0,
            max_tokens=30,
            frequency_penalty=0.8,
            repetition_penalty=1.3,
            logit_bias=NO_END,
        ),
    ),
    (REPEATS[:5], Sampling(temperature=0, max_tokens=1)),
    (REPEATS, Sampling(seed=6, max_tokens=30, stop="\x1f", logprobs=2)),
]


def answers(engine, *, together):
    """(ids, finish reason) of each request."""
    if together:
        streams = [engine.submit(ids, sampling) for ids, sampling in REQUESTS]
        read = [list(stream) for stream in streams]
    else:
        read = [list(engine.submit(ids, sampling)) for ids, sampling in REQUESTS]
    return [([event.token_id for event in events], events[-1].finish_reason) for events in read]


@pytest.fixture(scope="module")
def plain(tiny_model, tokenizer):
    with Engine(tiny_model, tokenizer, max_batch=4) as engine:
        return answers(engine, together=False)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", SOURCES)
def test_greedy_and_seeded_answers_are_those_without(tiny_model, tokenizer, plain, name, together):
    with Engine(tiny_model, tokenizer, max_batch=4) as engine:
        speculation = engine.proposer = Speculation(SOURCES[name](engine), always=True, most=4)
        assert answers(engine, together=together) == plain
        statistics = engine.statistics
        assert statistics.proposed_tokens > 0
        source = speculation.source
        assert not speculation._records and engine.num_running == 0
        if isinstance(source, DraftModel):
            assert not source._states and sorted(source._free) == [0, 1, 2, 3]
            assert source.cache.lengths == [0] * 4


def test_a_draft_that_is_the_model_is_always_right(tiny_model, tokenizer):
    with Engine(tiny_model, tokenizer, max_batch=1) as engine:
        engine.proposer = Speculation(SOURCES["itself"](engine), always=True, most=4)
        sampling = Sampling(temperature=0, max_tokens=21, logit_bias=NO_END)
        events = list(engine.submit(REPEATS, sampling))
        statistics = engine.statistics
        assert len(events) == 21
        assert statistics.accepted_tokens == statistics.proposed_tokens == 16  # 1 + 4 * (4 + 1)


@pytest.mark.parametrize("name", ["lookup", "itself", "a poor draft"])
def test_grammars_hold_and_their_answers_are_those_without(tiny_model, tokenizer, name):
    pytest.importorskip("llguidance")
    from lmworks.inference.grammar_tokens import GrammarCompiler

    compiler = GrammarCompiler(tokenizer, [2], 260)
    grammar = Grammar.regex("(abab|cdcd){3,8}-[0-9]{2}")

    def run(sampling):
        stream = engine.submit(tokenizer.encode("abab"), sampling, grammar=compiler.start(grammar))
        return [event.token_id for event in stream]

    with Engine(tiny_model, tokenizer, max_batch=2) as engine:
        each = [Sampling(temperature=0, max_tokens=60), Sampling(seed=1, max_tokens=60)]
        before = [run(sampling) for sampling in each]
        engine.proposer = Speculation(SOURCES[name](engine), always=True)
        assert [run(sampling) for sampling in each] == before
        assert engine.statistics.accepted_tokens > 0
        free = LocalChat(engine)  # drawn with probabilities
        form = {"type": "grammar", "grammar": {"syntax": "regex", "definition": "[ab]{9}-[0-9]"}}
        for _ in range(5):
            text = free.complete_text("abab", response_format=form, max_tokens=60).text
            assert len(text) == 11 and text[9] == "-"


# --- the distribution ---

SETTINGS = [
    {},
    {"temperature": 0.6},
    {"top_k": 3},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"repetition_penalty": 1.5, "temperature": 1.3},
]


def chi_square_holds(counts, expected_shares):
    total = counts.sum()
    assert not counts[expected_shares < 1e-9].any()
    often = expected_shares * total >= 5
    rest = total * expected_shares[~often].sum()
    statistic = (
        (counts - total * expected_shares)[often] ** 2 / (total * expected_shares[often])
    ).sum()
    degrees = int(often.sum()) - 1
    if rest > 1:
        statistic += (counts[~often].sum() - rest) ** 2 / rest
        degrees += 1
    return statistic < chi2.ppf(0.9999, max(degrees, 1))


@pytest.mark.parametrize("given", SETTINGS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_a_drawn_guess_does_not_change_the_distribution(given, masked):
    random = np.random.default_rng(2)
    logits = random.normal(0, 2, 8).astype(np.float32)
    mask = np.array([1, 0, 1, 1, 0, 1, 1, 1], dtype=bool) if masked else None
    proposal = np.exp(random.normal(0, 1.5, 8))
    proposal /= proposal.sum()
    sampler = Sampler(Sampling(**given), 8, [0, 3])
    wanted = sampler.distribution(logits, mask)
    sampler.count = lambda token_id: None  # the text stays as it is
    counts, kept, draws = np.zeros(8), 0, 20_000
    for guess in random.choice(8, draws, p=proposal):
        token_id = sampler.pick_proposed(logits, int(guess), proposal, mask).token_id
        counts[token_id] += 1
        kept += token_id == guess
    assert chi_square_holds(counts, wanted)
    share = np.minimum(wanted, proposal).sum()  # Leviathan et al., corollary 3.6
    assert abs(kept / draws - share) < 4 * (share * (1 - share) / draws) ** 0.5 + 1e-9


def test_the_wrong_rule_would_be_seen():
    """Without the correction (keep, else draw from p) the same test fails."""
    random = np.random.default_rng(2)
    wanted = np.array([0.6, 0.3, 0.1])
    proposal = np.array([0.1, 0.2, 0.7])
    counts = np.zeros(3)
    for guess in random.choice(3, 20_000, p=proposal):
        kept = random.random() * proposal[guess] < wanted[guess]
        counts[guess if kept else random.choice(3, p=wanted)] += 1
    assert not chi_square_holds(counts, wanted)


def exact_shares(model, prompt, sampling, length):
    """The probability of each sequence of `length` tokens, by enumeration."""
    shares = {(): 1.0}
    for _ in range(length):
        longer = {}
        for ids, share in shares.items():
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *ids]]))[0, -1, :260].numpy()
            logits = logits.copy()
            logits[:4] -= 100
            weights = probabilities(logits, sampling).astype(np.float64)
            for token_id in np.flatnonzero(weights):
                longer[(*ids, int(token_id))] = share * weights[token_id] / weights.sum()
        shares = longer
    return shares


@pytest.mark.parametrize("name", ["itself", "a poor draft"])
def test_whole_answers_have_the_distribution_of_the_model(tiny_model, tokenizer, name):
    sampling = Sampling(temperature=1.5, top_k=2, max_tokens=3, logit_bias=NO_END)
    prompt = REPEATS[:4]
    shares = exact_shares(tiny_model, prompt, sampling, 3)
    counts = Counter()
    with Engine(tiny_model, tokenizer, max_batch=8) as engine:
        engine.proposer = Speculation(SOURCES[name](engine), always=True, most=2)
        for _ in range(12):
            streams = [engine.submit(prompt, sampling) for _ in range(64)]
            counts.update(tuple(event.token_id for event in stream) for stream in streams)
        assert engine.statistics.proposed_tokens > 700
    assert set(counts) <= set(shares)
    order = sorted(shares)
    found = np.array([counts[ids] for ids in order], dtype=float)
    assert chi_square_holds(found, np.array([shares[ids] for ids in order]))


# --- guesses ---


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    more=st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=4),
    most=st.integers(1, 6),
)
def test_lookup_finds_the_latest_place_of_the_longest_end(ids, more, most):
    class Request:
        grammar = None

    source, request = PromptLookup(), Request()
    request.token_ids = list(ids)
    for further in [[], *more]:
        request.token_ids = [*request.token_ids, *further]
        text = request.token_ids
        [guess] = source.guess([request], [most])
        wanted = ()
        for size in range(5, 1, -1):
            ends = [e for e in range(size, len(text)) if text[e - size : e] == text[-size:]]
            if ends and len(text) > size:
                wanted = tuple(text[ends[-1] : ends[-1] + most])
                break
        assert tuple(guess) == wanted


def test_first_layers_share_the_weights(tiny_model):
    part = first_layers(tiny_model, 1)
    assert len(part.layers) == 1 and len(tiny_model.layers) == 2
    assert part.layers[0] is tiny_model.layers[0] and part.norm is tiny_model.norm
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        x = tiny_model.layers[0](tiny_model.embed(ids, torch.arange(3)), _context())
        np.testing.assert_allclose(
            part(ids).numpy(), tiny_model.logits(tiny_model.norm(x)).numpy(), atol=1e-6
        )


def _context():
    from lmworks.models.context import Context

    return Context()


# --- whether it pays ---


class Scripted:
    """A source whose guesses are kept as often as `rate` says."""

    def __init__(self, *, instant=True, guess_s=0.0):
        self.instant, self.guess_s = instant, guess_s

    def guess(self, requests, most):
        return [Guess([7] * room) for room in most]

    def ended(self, request):
        pass


def tokens_per_second(rate, slope, *, guess_s=0.0, steps=600, seed=0):
    """Of one request, on a machine where each further position costs `slope` of a step; and how
    many of the last 300 steps had guesses."""
    random = np.random.default_rng(seed)
    speculation = Speculation(Scripted(instant=not guess_s, guess_s=guess_s))
    tokens = seconds = used = 0
    request = object()
    for step in range(steps):
        [guess] = speculation.propose([request], [100])
        cost = 1 + slope * len(guess)
        speculation.stepped(1, 1 + len(guess), cost * random.uniform(0.9, 1.1))
        kept = next((i for i in range(len(guess)) if random.random() > rate), len(guess))
        if guess:
            speculation.verified(request, len(guess), kept)
        tokens += 1 + kept
        seconds += cost + (guess_s * len(guess))
        used += bool(guess) and step >= steps - 300
    return tokens / seconds, used


@pytest.mark.parametrize("guess_s", [0.0, 0.1])
def test_it_goes_on_where_it_pays_and_off_where_it_does_not(guess_s):
    speed, used = tokens_per_second(0.9, 0.05, guess_s=guess_s)
    assert speed > 2 and used > 280
    speed, used = tokens_per_second(0.1, 0.3, guess_s=guess_s)
    assert speed > 0.96 and used < 15
    speed, used = tokens_per_second(0.9, 1.1, guess_s=guess_s)
    assert speed > 0.93 and used < 15


def test_it_comes_back_when_guesses_become_good():
    random = np.random.default_rng(0)
    speculation, request, used = Speculation(Scripted()), object(), []
    for step in range(1200):
        [guess] = speculation.propose([request], [100])
        speculation.stepped(1, 1 + len(guess), 1 + 0.1 * len(guess))
        rate = 0.05 if step < 400 else 0.95
        kept = next((i for i in range(len(guess)) if random.random() > rate), len(guess))
        if guess:
            speculation.verified(request, len(guess), kept)
        used.append(len(guess))
    assert np.mean(used[200:400]) < 0.3 < 3 < np.mean(used[900:])


def test_short_answers_are_spared_what_was_of_no_use_before():
    speculation, used = Speculation(Scripted(instant=False, guess_s=0.3)), []
    for _ in range(40):
        request, guesses = object(), 0
        for _ in range(60):
            [guess] = speculation.propose([request], [100])
            speculation.stepped(1, 1 + len(guess), 1 + 0.3 * len(guess))
            if guess:
                speculation.verified(request, len(guess), 0)
            guesses += len(guess)
        speculation.ended(request)
        used.append(guesses)
    assert used[0] > 0 and not any(used[8:])


def test_one_request_is_left_out_while_another_goes_on():
    speculation = Speculation(Scripted(instant=False, guess_s=0.05))
    good, bad = object(), object()
    left_out = 0
    for _ in range(300):
        guesses = speculation.propose([good, bad], [100, 100])
        speculation.stepped(2, 1 + max(map(len, guesses)), 1.0)
        for request, guess in zip((good, bad), guesses, strict=True):
            if guess:
                speculation.verified(request, len(guess), len(guess) if request is good else 0)
        left_out += bool(guesses[0]) and not guesses[1]
    assert left_out > 200


def test_expected_and_predicted():
    assert expected(0.5, 3) == pytest.approx(0.5 + 0.25 + 0.125)
    assert expected(1.0, 4) == 4
    times = StepTimes()
    times.note(1, 1, 1.0)
    assert times.predict(1, 5) == pytest.approx(1.4)
    times.note(1, 5, 2.0)
    assert times.predict(1, 3) == pytest.approx(1.5)
    assert times.predict(1, 9) == pytest.approx(3.0)


# --- what is asked ---


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("lokup", "did you mean 'lookup'"),
        ("lookup=3", "takes no value"),
        ("draft", "draft=REFERENCE"),
        ("early-exit", "from 1 to 1"),
        ("early-exit=2", "from 1 to 1"),
        ("early-exit=-1", "from 1 to 1"),
        ("draft=/nowhere/at/all", "nowhere"),
    ],
)
def test_a_bad_way_is_told(engine, how, told):
    with pytest.raises(UserError, match=told):
        speculation_for(engine, how)


def test_another_vocabulary_is_told(tokenizer):
    from lmworks.tokenizers.train import train_bpe

    assert common_tokens(tokenizer, tokenizer) == 260
    other = train_bpe(["aaaa"], vocab_size=261, special_tokens=("<x>",))
    with pytest.raises(UserError, match="another vocabulary: id 0"):
        common_tokens(tokenizer, other)


def test_usage_tells_what_was_guessed(tiny_model, tokenizer):
    with Engine(tiny_model, tokenizer, max_batch=1) as engine:
        engine.proposer = Speculation(PromptLookup(), always=True)
        answer = LocalChat(engine).complete_text(REPEATS, temperature=0, max_tokens=30)
    assert answer.proposed_tokens == engine.statistics.proposed_tokens > 0
    assert answer.accepted_tokens == engine.statistics.accepted_tokens


def test_a_failing_source_costs_no_answer(tiny_model, tokenizer, plain, caplog):
    class Broken(PromptLookup):
        def guess(self, requests, most):
            raise RuntimeError("broken")

    with Engine(tiny_model, tokenizer, max_batch=4) as engine:
        engine.proposer = Speculation(Broken(), always=True)
        assert answers(engine, together=True) == plain
        assert engine.proposer is None
    assert "speculation failed" in caplog.text

"""Several models as one: what they say together, in one cache, through everything that serves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inference.driving import NO_END, greedy, prompt

from lmworks.core.errors import UserError
from lmworks.inference.chat import load_chat
from lmworks.inference.engine import Engine
from lmworks.models.cache import KVCache
from lmworks.models.config import (
    AttentionConfig,
    ChannelMixConfig,
    MLPConfig,
    ModelConfig,
    RoPEConfig,
)
from lmworks.models.context_scaling import extended
from lmworks.models.ensemble import EnsembleModel, combined, combined_config
from lmworks.models.ensemble_spec import EnsembleSpec, Member, ensemble_file, read_ensemble
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.models.size import held_bytes, model_size


def small(seed: int, *, hidden: int, layers: int, heads: int, longer: bool = False) -> Model:
    config = ModelConfig.uniform(
        vocab_size=264 + 4 * seed,  # padded otherwise
        hidden_size=hidden,
        num_hidden_layers=layers,
        mixer=AttentionConfig(
            num_attention_heads=heads,
            num_key_value_heads=2,
            head_dim=16,
            rope=RoPEConfig(theta=50.0),
        ),
        feed_forward=MLPConfig(intermediate_size=48),
        max_position_embeddings=40 if longer else 200,
    )
    if longer:
        config = extended(config, factor=4.0)
    model = Model(config).eval()
    model.reset_parameters(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return model


@pytest.fixture(scope="module")
def members() -> list[Model]:
    """Of two sizes; one is stretched beyond 40 positions, to 160."""
    return [
        small(0, hidden=64, layers=2, heads=4),
        small(1, hidden=32, layers=3, heads=2, longer=True),
    ]


def spec_of(**how: Any) -> EnsembleSpec:
    weights = how.pop("weights", (1.0, 3.0))
    return EnsembleSpec(models=tuple(Member(model="x", weight=w) for w in weights), **how)


HOWS = [{"combine": "logprobs"}, {"combine": "probabilities"}, {"combine": "contrastive"}]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 8.0), st.floats(0.1, 4.0))
def test_together_they_say_what_the_definitions_say(seed: int, spread: float, w: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 11, generator=generator) * spread
    p, q = logits.double().softmax(-1)
    share = w / (1 + w)
    mixed = combined(list(logits), spec_of(combine="probabilities", weights=(1.0, w)))
    assert torch.allclose(mixed.exp().double(), (1 - share) * p + share * q, atol=1e-6)
    product = combined(list(logits), spec_of(combine="logprobs", weights=(1.0, w)))
    expected = p ** (1 - share) * q**share
    expected = expected / expected.sum(-1, keepdim=True)
    assert torch.allclose(product.softmax(-1).double(), expected, atol=1e-5)
    away = combined(list(logits), spec_of(combine="contrastive", strength=w, plausible=0.2))
    left = p >= 0.2 * p.amax(-1, keepdim=True)
    near = (p / p.amax(-1, keepdim=True) - 0.2).abs() < 1e-5  # either is right there
    assert bool((((away > -torch.inf) == left) | near).all())
    scores = (1 + w) * p.log() - w * q.log()
    kept = left & (away > -torch.inf)
    assert torch.allclose(away.double()[kept], scores[kept], rtol=1e-4, atol=1e-3)


def test_a_weight_of_nought_leaves_a_member_out() -> None:
    logits = [torch.tensor([0.0, 1.0, 2.0]), torch.tensor([torch.inf, 0.0, 0.0])]
    for how in HOWS[:2]:
        found = combined(logits, spec_of(weights=(2.0, 0.0), **how))
        assert torch.allclose(found, logits[0].log_softmax(-1))


@pytest.mark.parametrize("how", HOWS, ids=lambda how: how["combine"])
def test_one_cache_holds_all_members(members: list[Model], how: Any) -> None:
    model = EnsembleModel(members, spec_of(**how))
    ids = torch.randint(4, 260, (2, 60), generator=torch.Generator().manual_seed(3))
    cache = KVCache(model.config, 3, 150)
    alone = [KVCache(member.config, 3, 150) for member in members]

    def expected(new: torch.Tensor, slots: list[int]) -> torch.Tensor:
        pairs = zip(members, alone, strict=True)
        logits = [m(new, cache=c.view(slots), last_only=True)[..., :264] for m, c in pairs]
        return combined(logits, model.spec)

    def close(new: torch.Tensor, slots: list[int]) -> None:
        got, right = model(new, cache=cache.view(slots), last_only=True), expected(new, slots)
        assert torch.equal(got.isfinite(), right.isfinite())
        assert (got - right)[right.isfinite()].abs().max() < 2e-3

    with torch.no_grad():
        close(ids[:, :29], [2, 0])
        whole = model(ids[:, :29], last_only=True)
        for each in (cache, *alone):
            each.continue_from([1], [0])  # a page that is shared, and then written to
        for n in range(29, 59):  # beyond 40, keys of one member are turned anew
            close(ids[:, n : n + 1], [2, 0])
        close(ids[1:, 29:31], [1])
        cache.free(2)
        again = model(ids[:1, :29], cache=cache.view([2]), last_only=True)
        finite = again.isfinite()
        assert (again - whole[:1])[finite].abs().max() < 2e-3
    assert cache.lengths == [59, 31, 29] and cache.regimes == [1, 0, 0]


def test_answers_are_those_of_the_whole_text_for_many_requests(
    members: list[Model], tokenizer: Any
) -> None:
    model = EnsembleModel(members, spec_of())
    prompts = [prompt(1, 20), prompt(2, 33), prompt(1, 20) + prompt(3, 7), prompt(4, 70)]
    with Engine(model, tokenizer, max_batch=3, cache_tokens=208) as engine:
        streams = [engine.submit(ids, greedy(25, logit_bias=NO_END)) for ids in prompts]
        answers = [[event.token_id for event in stream] for stream in streams]
        for cached in (None, 32):
            repeated = engine.submit(prompts[1], greedy(2, logit_bias=NO_END))
            assert [event.token_id for event in repeated] == answers[1][:2]
            assert cached is None or repeated.cached_tokens == cached
    for ids, answer in zip(prompts, answers):
        found: list[int] = []
        for _ in range(25):
            with torch.no_grad():
                logits = model(torch.tensor([[*ids, *found]]))[0, -1, :260]
            logits[:4] -= 100
            found.append(int(logits.argmax()))
        assert answer == found


@pytest.fixture
def folder(members: list[Model], tokenizer: Any, tmp_path: Path) -> Path:
    for name, model in zip(("one", "two"), members):
        save_model(model, tmp_path / name)
        tokenizer.save(tmp_path / name)
    (tmp_path / "both").mkdir()
    told = {"models": ["../one", {"model": "../two", "weight": 0.5}], "combine": "probabilities"}
    (tmp_path / "both/ensemble.yaml").write_text(yaml.safe_dump(told))
    return tmp_path / "both"


def test_a_reference_to_an_ensemble_leads_to_one_model(folder: Path, members: list[Model]) -> None:
    alone = load_chat(folder.parent / "one", max_batch=1)
    chat: Any = load_chat(folder, max_batch=1)
    try:
        text = chat.complete_text("abc", temperature=0, max_tokens=8, logprobs=1)
        assert text.logprobs[0].logprob != pytest.approx(
            alone.complete_text("abc", temperature=0, max_tokens=1, logprobs=1).logprobs[0].logprob
        )
        ids = torch.tensor([chat.engine.tokenizer.encode("abc")])
        with torch.no_grad():
            shares = [m(ids)[0, -1, :264].softmax(-1) for m in members]
        both = (shares[0] / 1.5 + shares[1] / 3)[:260]  # what stands for a token
        expected = float((both.max() / both.sum()).log())
        assert text.logprobs[0].logprob == pytest.approx(expected, abs=1e-4)
        size = model_size(folder, packed=True)
        assert size.weight_bytes == held_bytes(chat.engine.model)
        assert size.cache_bytes(1, 160) == chat.engine.cache_bytes
        assert "early-exit: an ensemble has no first layers" in _refusal(
            lambda: load_chat(folder, max_batch=1, speculate="early-exit=1")
        )
    finally:
        chat.close()
        alone.close()  # type: ignore[attr-defined]


def _refusal(act: Any) -> str:
    with pytest.raises(UserError) as error:
        act()
    return str(error.value)


def test_members_of_another_vocabulary_are_named(folder: Path, tokenizer: Any) -> None:
    from lmworks.tokenizers.train import train_bpe

    train_bpe(["an other text, and another"] * 9, vocab_size=270).save(folder.parent / "two")
    file = folder.parent / "two/tokenizer.json"
    text = file.read_text()
    assert '"A": ' in text
    file.write_text(text.replace('"A": ', '"\u00b0A": '))
    assert "two has another vocabulary than" in _refusal(lambda: load_chat(folder))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("models: [one]", "from 2 to 16 models, not 1"),
        ("models: one", "needs `models:` with a list"),
        ("[1, 2", "is no YAML"),
        ("models: [{model: a, wieght: 2}, b]", "weight"),
        ("{models: [a, b], combine: logprob}", "logprobs"),
        ("{models: [a, b, c], combine: contrastive}", "two models"),
        ("models: [{model: a, weight: -1}, b]", "a number from 0 up"),
        ("models: [{model: a, weight: 0}, {model: b, weight: 0}]", "a weight above 0"),
        ("{models: [a, b], plausible: 0}", "above 0"),
        ("models: [{model: ''}, b]", "needs a reference"),
    ],
)
def test_a_file_that_tells_no_ensemble_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "e.yaml").write_text(text)
    assert told in _refusal(lambda: read_ensemble(tmp_path / "e.yaml"))
    assert ensemble_file(tmp_path / "e.yaml") == tmp_path / "e.yaml"
    assert ensemble_file(tmp_path) is None


def test_an_ensemble_in_an_ensemble_and_states_of_two_sizes_are_refused(folder: Path) -> None:
    (folder / "outer.yaml").write_text("models: [., ../one]")
    assert "is an ensemble" in _refusal(lambda: load_chat(folder / "outer.yaml"))
    (folder / "far.yaml").write_text("models: [../one, 'http://localhost:1/v1']")
    assert "is an endpoint" in _refusal(lambda: load_chat(folder / "far.yaml"))
    config = small(0, hidden=32, layers=1, heads=2).config
    mix = ChannelMixConfig(intermediate_size=64)  # it keeps a state of the hidden size
    layer = dataclasses.replace(config.layers[0], feed_forward=mix)
    recurrent = dataclasses.replace(config, layers=(layer,))
    wider = dataclasses.replace(config, hidden_size=64)
    assert "one hidden size" in _refusal(lambda: combined_config([wider, recurrent]))
    assert len(combined_config([config, recurrent]).layers) == 2

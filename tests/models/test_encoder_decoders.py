"""Encoder-decoders of other projects: both stacks, decoding with our cache, gradients."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.parity import assert_encoder_decoder_parity, assert_parity, randomised

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import architecture
from lmworks.models.cache import KVCache
from lmworks.models.config import RelativePositions
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.models.positions import distance_buckets
from lmworks.models.save import save_model

transformers = pytest.importorskip("transformers")

T5: dict[str, Any] = {
    "vocab_size": 97,
    "d_model": 24,
    "d_kv": 10,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 40,
}
BART: dict[str, Any] = {
    "vocab_size": 97,
    "d_model": 24,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 6,
    "max_position_embeddings": 90,
    "forced_eos_token_id": None,
}
V1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5 1.0": ("T5", "ForConditionalGeneration", T5),
    "t5 1.1": ("T5", "ForConditionalGeneration", T5 | V1_1),
    # transformers 5 ties 1.1 too when it makes one, and says apart that it does not scale.
    "t5 tied, not scaled": ("T5", "ForConditionalGeneration", T5 | V1_1),
    "t5 gated silu": ("T5", "ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-silu"}),
    # generate of transformers 5.24 fails where the decoder is the deeper one.
    "t5 bare, deep decoder": ("T5", "Model", T5 | {"num_decoder_layers": 3}),
    "mt5": ("MT5", "ForConditionalGeneration", T5 | V1_1),
    "bart": ("Bart", "ForConditionalGeneration", BART),
    "bart scaled": (
        "Bart",
        "ForConditionalGeneration",
        BART | {"scale_embedding": True, "activation_function": "relu"},
    ),
    "bart bare": ("Bart", "Model", BART),
}


def random_model(name: str) -> Any:
    family, head, settings = CASES[name]
    torch.manual_seed(0)
    theirs = getattr(transformers, family + head)(
        getattr(transformers, f"{family}Config")(**settings)
    )
    if settings.get("tie_word_embeddings") is False and name != "t5 tied, not scaled":
        # transformers ties them when it makes one, but not when it reads the published files.
        theirs.lm_head.weight = torch.nn.Parameter(torch.randn(97, 24) * 0.3)
        theirs.config.tie_word_embeddings = False
    if hasattr(theirs, "final_logits_bias"):
        theirs.final_logits_bias.normal_()
    return randomised(theirs)


@pytest.fixture
def source() -> tuple[torch.Tensor, torch.Tensor]:
    """Three texts of 50, 31 and 8 tokens, and which of them are tokens."""
    ids = torch.randint(3, 97, (3, 50), generator=torch.Generator().manual_seed(2))
    return ids, (torch.arange(50) < torch.tensor([50, 31, 8])[:, None]).long()


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_same_answers_as_transformers(
    name: str, padded: bool, tmp_path: Path, source: tuple[torch.Tensor, torch.Tensor]
) -> None:
    ids = torch.randint(3, 97, (3, 20), generator=torch.Generator().manual_seed(3))
    ids[:, 0] = 2
    assert_encoder_decoder_parity(
        random_model(name),
        tmp_path,
        source[0],
        ids,
        num_greedy=0 if CASES[name][1] == "Model" else 64,
        attention_mask=source[1] if padded else None,
        skip_gradients=("head.bias",),  # a buffer in transformers
    )


WHISPER: dict[str, Any] = {
    "vocab_size": 97,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 32,
    "max_source_positions": 25,
    "max_target_positions": 90,
    "num_mel_bins": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "begin_suppress_tokens": None,
}


def features() -> torch.Tensor:
    return torch.randn(3, 8, 50, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("head", ["ForConditionalGeneration", "Model"])
def test_whisper(head: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.WhisperConfig(**WHISPER)
    theirs = randomised(getattr(transformers, f"Whisper{head}")(config))
    # Its own `generate` has rules for timestamps and languages; what is compared is the search.
    theirs.generate = functools.partial(transformers.GenerationMixin.generate, theirs)
    ids = torch.randint(3, 97, (3, 20), generator=torch.Generator().manual_seed(3))
    ids[:, 0] = 2
    assert_encoder_decoder_parity(
        theirs,
        tmp_path,
        features(),
        ids,
        source_name="input_features",
        num_greedy=0 if head == "Model" else 64,
        skip_gradients=("encoder.embed_positions.weight",),  # frozen in transformers
    )


def test_sound_that_does_not_fit(tmp_path: Path) -> None:
    transformers.WhisperModel(transformers.WhisperConfig(**WHISPER)).save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    with pytest.raises(UserError, match="8 mels, frames"):
        ours.encode(torch.zeros(1, 50, 8))
    with pytest.raises(UserError, match="beyond the 25"):
        ours.encode(torch.zeros(1, 8, 52))
    with torch.no_grad():
        shorter = ours(torch.tensor([[5]]), encoded=ours.encode(features()[:, :, :31][:1]))
    assert shorter.shape == (1, 1, 24)


def test_an_encoder_alone(tmp_path: Path, source: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.manual_seed(0)
    theirs = randomised(transformers.T5EncoderModel(transformers.T5Config(**T5)))
    assert_parity(theirs, tmp_path, source[0], num_greedy=0, attention_mask=source[1])


@torch.no_grad()
@pytest.mark.parametrize("name", ["t5 1.1", "bart"])
def test_they_are_kept_in_our_own_folder(name: str, tmp_path: Path) -> None:
    random_model(name).save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    save_model(ours, tmp_path / "ours")
    again = load_model(tmp_path / "ours")
    assert again.config == ours.config
    ids = torch.arange(5, 25)[None]
    assert torch.equal(again(ids, encoded=again.encode(ids)), ours(ids, encoded=ours.encode(ids)))


@torch.no_grad()
@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(1, 39), max_size=3), lead=st.integers(0, 9))
def test_the_bias_by_distance_in_chunks_of_any_size(cuts: list[int], lead: int) -> None:
    """Rows of different lengths too: slot 1 is `lead` tokens ahead of slot 0."""
    model = _small_t5()
    ids = torch.randint(0, 97, (2, 40), generator=torch.Generator().manual_seed(4))
    source = torch.arange(10, 20).repeat(2, 1)
    cache = KVCache(model.config, 2, 50)
    if lead:
        model(ids[1:, :lead], cache=cache.view([1]), encoded=model.encode(source[:1]))
    whole = torch.cat((ids[1:, :lead], ids[1:]), dim=1)
    wanted = torch.cat(
        (
            model(ids[:1], encoded=model.encode(source[:1])),
            model(whole, encoded=model.encode(source[:1]))[:, lead:],
        )
    )
    view, encoded, parts, start = cache.view([0, 1]), model.encode(source), [], 0
    for end in sorted({*cuts, 40}):
        parts.append(model(ids[:, start:end], cache=view, encoded=encoded))
        start = end
    assert (torch.cat(parts, dim=1) - wanted).abs().max() < 1e-4


def _small_t5() -> Model:
    layout = architecture("t5").layout("hf")
    model = Model(layout.read_config(T5 | {"architectures": None}))
    model.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model.eval()


@given(
    buckets=st.integers(2, 40).map(lambda half: 2 * half),
    distance=st.integers(30, 500),
    bidirectional=st.booleans(),
)
def test_buckets_are_those_of_transformers(
    buckets: int, distance: int, bidirectional: bool
) -> None:
    config = RelativePositions(
        num_buckets=buckets, max_distance=distance + buckets, bidirectional=bidirectional
    )
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-600, 600)
    theirs = T5Attention._relative_position_bucket(
        distances, bidirectional, buckets, config.max_distance
    )
    assert torch.equal(distance_buckets(distances, config), theirs)


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("t5", {"architectures": ["T5ForTokenClassification"]}, "T5ForTokenClassification"),
        ("t5", {"feed_forward_proj": "gated-swoosh"}, "gated-swoosh"),
        ("t5", {"feed_forward_proj": "split-gelu"}, "split-gelu"),
        ("t5", {"relative_attention_max_distance": 3}, "max_distance 3"),
        ("t5", {"d_kv": None}, "d_kv is missing"),
        ("t5", {"num_layers": 0}, "num_hidden_layers"),
        ("bart", {"architectures": ["BartForSequenceClassification"]}, "SequenceClass"),
        ("bart", {"decoder_attention_heads": 5}, "multiple"),
        ("whisper", {"architectures": ["WhisperForAudioClassification"]}, "AudioClass"),
        ("whisper", {"num_mel_bins": 0}, "num_mel_bins"),
        ("bart", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    ],
)
def test_configs_that_do_not_fit(name: str, changes: dict[str, Any], told: str) -> None:
    values = {"t5": T5, "bart": BART, "whisper": WHISPER}[name]
    with pytest.raises(UserError, match=told):
        architecture(name).layout("hf").read_config(values | changes)


def test_the_encoder_is_not_forgotten() -> None:
    with pytest.raises(UserError, match="encoded"):
        _small_t5()(torch.tensor([[1, 2]]))

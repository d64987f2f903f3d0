"""Beam search: the beams of transformers, also for models that keep windows or states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lmworks.core.errors import UserError
from lmworks.inference.beam_search import beam_search
from lmworks.models.config.patterns import Sizes, decoder_config
from lmworks.models.load import load_model
from lmworks.models.model import Model

VOCAB, END = 24, 3


def pair(folder: Path, seed: int) -> tuple[Any, Model]:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=64, initializer_range=0.4, eos_token_id=END,
        bos_token_id=1, pad_token_id=END,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(folder)
    return theirs, load_model(folder)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("num_beams", "penalty"), [(1, 1.0), (3, 1.0), (4, 0.0), (4, 2.0)])
def test_beams_are_those_of_transformers(
    tmp_path: Path, seed: int, num_beams: int, penalty: float
) -> None:
    theirs, ours = pair(tmp_path, seed)
    prompt = [1, 5, 9]
    found = beam_search(
        ours, prompt, num_beams=num_beams, max_tokens=12, eos_token_ids=[END],
        length_penalty=penalty,
    )  # fmt: skip
    expected = theirs.generate(
        torch.tensor([prompt]), num_beams=num_beams, num_return_sequences=num_beams,
        max_new_tokens=12, length_penalty=penalty, do_sample=False, early_stopping=False,
        output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    rows = [row[3:].tolist() for row in expected.sequences]
    texts = [row[: row.index(END) + 1] if END in row else row for row in rows]
    assert [list(beam.ids) for beam in found] == texts
    if num_beams > 1:
        scores = torch.tensor([beam.score for beam in found])
        torch.testing.assert_close(scores, expected.sequences_scores, atol=1e-4, rtol=0)


def test_some_beams_end_before_others(tmp_path: Path) -> None:
    ends = set()
    for seed in range(4):
        _, ours = pair(tmp_path / str(seed), seed)
        for beam in beam_search(ours, [1, 5, 9], max_tokens=12, eos_token_ids=[END]):
            ends.add(beam.ended)
            assert beam.ended == (beam.ids[-1] == END)
            assert END not in beam.ids[:-1]
    assert ends == {True, False}


@pytest.mark.parametrize("pattern", ["window", "mamba", "rwkv", "gla,attention"])
def test_what_a_layer_keeps_goes_along_with_its_beam(pattern: str) -> None:
    sizes = Sizes(hidden_size=32, num_attention_heads=2, context_length=64, window=4)
    model = Model(decoder_config(pattern, depth=2, vocab_size=VOCAB, sizes=sizes)).eval()
    model.reset_parameters(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.ndim > 1 else 1)
    prompt = [1, 5, 9, 2, 7]
    for beam in beam_search(model, prompt, num_beams=5, max_tokens=10):
        ids = torch.tensor([[*prompt, *beam.ids]])
        with torch.no_grad():
            logprobs = model(ids).log_softmax(-1)[0, len(prompt) - 1 : -1]
        whole = logprobs.gather(1, torch.tensor(beam.ids)[:, None]).sum()
        assert beam.logprob == pytest.approx(float(whole), abs=1e-3)


def test_requests_that_make_no_sense_are_one_line(tmp_path: Path) -> None:
    _, model = pair(tmp_path, 0)
    for prompt, options, told in (
        ([], {}, "the prompt is empty"),
        ([1], {"num_beams": 0}, "at least one of each"),
        ([1] * 2048, {}, "leaves no room in the 2048"),
    ):
        with pytest.raises(UserError, match=told):
            beam_search(model, prompt, **options)  # type: ignore[arg-type]

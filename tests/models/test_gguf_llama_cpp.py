"""GGUF files of each architecture, written by us: llama.cpp gives the same probabilities."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmworks.core.gguf import GGUFTensor, write_gguf
from lmworks.models.architectures.base import architecture, to_foreign
from lmworks.models.config import ModelConfig
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import train_bpe

pytest.importorskip("xllamacpp", reason="pip install xllamacpp, to check llama.cpp")
from tests.compression.test_llama_cpp import Server

PROMPTS = [[30 + (37 * i + 11 * start) % 220 for i in range(30)] for start in range(9)]
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 3.0, 6.0, 9.0, 12.0, 15.0, 18.0, 21.0],
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
GEMMA = SIZES | {"head_dim": 32, "sliding_window": 9, "tie_word_embeddings": True}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}

# name: (architecture in GGUF, in Hugging Face files, its settings)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mistral": ("llama", "mistral", SIZES | {"sliding_window": None}),
    "llama with yarn": ("llama", "llama", SIZES | {"rope_scaling": YARN}),
    "qwen2": ("qwen2", "qwen2", SIZES),
    "qwen3": ("qwen3", "qwen3", SIZES | {"head_dim": 32}),
    "gemma": ("gemma", "gemma", GEMMA),
    "gemma2": (
        "gemma2",
        "gemma2",
        GEMMA
        | {
            "query_pre_attn_scalar": 32,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "gemma3",
        "gemma3_text",
        GEMMA | {"num_hidden_layers": 7, "query_pre_attn_scalar": 32, "rope_theta": 1e5},
    ),
    "phi3": ("phi3", "phi3", SIZES),
    "phi3 with longrope": (
        "phi3",
        "phi3",
        SIZES | {"rope_scaling": LONG, "original_max_position_embeddings": 16},
    ),
    "olmo2": ("olmo2", "olmo2", SIZES),
    "gpt2": ("gpt2", "gpt2", GPT2),
}


@functools.cache
def tokenizer() -> PipelineTokenizer:
    return train_bpe(["the cat sat on the mat, and the 12 dogs don't\n"] * 20, vocab_size=288)


def scattered(config: ModelConfig) -> Model:
    model, generator = Model(config), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            vector = parameter.ndim == 1
            centre = 0.8 if vector and "norm.weight" in name else 0.0
            parameter.normal_(centre, 0.3 if vector else 0.15, generator=generator)
    return model.eval()


def write(model: Model, path: Path, name: str) -> Path:
    """`model` as an F32 file of the architecture `name`, with a tokenizer as llama.cpp insists."""
    layout = architecture(name).layout("gguf")
    state = to_foreign(model.state_dict(), model.config, layout)
    arrays = {key: tensor.contiguous().numpy() for key, tensor in state.items()}
    tensors = {
        key: GGUFTensor(
            name=key,
            shape=array.shape,
            type="F32",
            data=np.frombuffer(array.astype(np.float32).tobytes(), np.uint8),
        )
        for key, array in (arrays | layout.extras(model.config)).items()
    }
    metadata = layout.config_dict(model.config) | tokenizer().gguf_metadata()
    write_gguf(path, metadata, tensors)
    return path


def answers(token_id: int) -> bool:
    """Whether the token is text of its own."""
    special = token_id in tokenizer().special_tokens.values()
    return not special and tokenizer().decode([token_id]).isascii()


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_gives_the_same_probabilities(case: str, tmp_path: Path) -> None:
    name, model_type, settings = CASES[case]
    values = settings | {"model_type": model_type, "vocab_size": tokenizer().vocab_size}
    config = architecture(model_type).layout("hf").read_config(values)
    assert architecture(name).expresses(config, "gguf")
    model = scattered(config)
    path = write(model, tmp_path / "model.gguf", name)

    again = load_model(path)
    assert again.config == config
    for key, tensor in model.state_dict().items():
        assert torch.allclose(again.state_dict()[key], tensor, rtol=0, atol=3e-7), key

    # What ends at once, or within a character, is answered without probabilities.
    with torch.inference_mode():
        prompt = next(p for p in PROMPTS if answers(int(again(torch.tensor([p]))[0, -1].argmax())))
    body = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": 1000}
    answer = Server(path).ask("/completion", body)
    listed = answer["completion_probabilities"][0]["top_logprobs"]
    assert len(listed) == config.vocab_size
    theirs = torch.tensor([entry["logprob"] for entry in sorted(listed, key=lambda e: e["id"])])
    with torch.inference_mode():
        ours = again(torch.tensor([prompt]))[0, -1].log_softmax(-1)
    assert ours.std() > 0.3
    # llama.cpp keeps keys and values as float16.
    assert (ours - theirs).abs().max() < 0.03 * ours.std()


def test_a_window_that_the_format_has_no_word_for_is_not_written() -> None:
    window = SIZES | {"sliding_window": 9, "vocab_size": 99}
    config = architecture("mistral").layout("hf").read_config(window)
    assert not architecture("llama").expresses(config, "gguf")
    plain = dataclasses.replace(config.layers[0].mixer, pattern=None)  # type: ignore[type-var]
    assert architecture("llama").expresses(config.with_layers(mixer=plain), "gguf")

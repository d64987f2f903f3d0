"""A small real tokenizer and a tiny real decoder."""

from __future__ import annotations

import json

import pytest

TEXTS = [
    "The quick brown fox jumps over the lazy dog, again and again and again.",
    "A context manager is an object that controls the environment seen in a with statement.",
    "Gr\u00fc\u00dfe aus K\u00f6ln \U0001f600, the end of the line and the end of the page.",
]


@pytest.fixture(scope="session")
def tokenizer():
    from lmworks.tokenizers.train import train_bpe

    return train_bpe(TEXTS * 3, vocab_size=300)


@pytest.fixture
def make_decoder():
    """A decoder with strong random weights, so that context matters."""

    def make(vocab_size=300, context=16, seed=0):
        import torch

        from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
        from lmworks.models.model import Model

        model = Model(
            ModelConfig.uniform(
                vocab_size=vocab_size,
                hidden_size=16,
                num_hidden_layers=2,
                mixer=AttentionConfig(num_attention_heads=2, num_key_value_heads=1, head_dim=8),
                feed_forward=MLPConfig(intermediate_size=32),
                tie_word_embeddings=True,
                max_position_embeddings=context,
            )
        )
        generator = torch.Generator().manual_seed(seed)
        model.reset_parameters(generator)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(12)
        return model.eval()

    return make


@pytest.fixture
def texts_file(tmp_path):
    """Eight documents, one a line."""
    path = tmp_path / "texts.jsonl"
    rows = [{"text": f"{i} " + " ".join(TEXTS[(i + j) % 3] for j in range(8))} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def reference(tokenizer, tmp_path):
    """The folder of a model whose matrices all ggml types fit."""
    import torch

    from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
    from lmworks.models.model import Model
    from lmworks.models.save import save_model

    model = Model(
        ModelConfig.uniform(
            vocab_size=tokenizer.vocab_size,
            hidden_size=64,
            num_hidden_layers=2,
            mixer=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=16),
            feed_forward=MLPConfig(intermediate_size=96),
            max_position_embeddings=512,
        )
    )
    model.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    save_model(model, tmp_path / "base")
    tokenizer.save(tmp_path / "base")
    return tmp_path / "base"

"""Three tokenizers that were trained in a moment, and the Studio over them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import httpx
import pytest

from lmworks.studio.app import create_app
from lmworks.studio.shelf import LoadedModel
from lmworks.tokenizers import vocab_txt
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import train_bpe

PROSE = "\n".join(topics[name] for name in sorted(topics))


@pytest.fixture(scope="session")
def prose() -> str:
    return PROSE


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PipelineTokenizer]:
    words = sorted({word for word in PROSE.lower().split() if word.isalpha()})
    letters = [mark + c for c in "abcdefghijklmnopqrstuvwxyz.,()" for mark in ("", "##")]
    lossy = vocab_txt.from_texts(["[UNK]", *words, *sorted(set(letters) - set(words))],
                                 lowercase=True)  # fmt: skip
    return {
        "small": train_bpe([PROSE[:30_000]], vocab_size=400),
        "large": train_bpe([PROSE[:200_000]], vocab_size=3000),
        "lower": PipelineTokenizer(lossy),
    }


@pytest.fixture(scope="session")
def tiny(tokenizers: dict[str, PipelineTokenizer]) -> LoadedModel:
    """A model whose heads differ, with the small tokenizer."""
    import torch

    from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
    from lmworks.models.model import Model

    mixer = AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    model = Model(ModelConfig.uniform(
        vocab_size=tokenizers["small"].vocab_size, hidden_size=32, num_hidden_layers=3,
        mixer=mixer, feed_forward=MLPConfig(intermediate_size=64),
    ))  # fmt: skip
    model.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
        model.layers[0].mixer.q_proj.weight.zero_()  # looks evenly at all
    return LoadedModel(model.eval(), tokenizers["small"])


@pytest.fixture(scope="session")
def studio_app(tokenizers: dict[str, PipelineTokenizer], tiny: LoadedModel) -> Any:
    """`studio_app(**options)`: a Studio that holds the three, and the model."""

    def make(**options: Any) -> Any:
        app = create_app(**options)
        for name, tokenizer in tokenizers.items():
            app.state.studio.tokenizers.put(name, name, tokenizer)
        app.state.studio.models.put("tiny", "tiny", tiny)
        return app

    return make


@pytest.fixture(scope="session")
def site(live_app: Any, studio_app: Any) -> Iterator[Any]:
    with live_app(studio_app()) as live:
        yield live


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizers: Any) -> Path:
    """The folder of a tokenizer that can be loaded by its path."""
    folder = tmp_path_factory.mktemp("saved") / "another"
    tokenizers["small"].save(folder)
    return folder


@pytest.fixture
def ask(studio_app: Any) -> Any:
    """A client of the application, without a socket."""
    transport = httpx.ASGITransport(app=studio_app())

    class Client:
        def __call__(self, method, path, **options):
            import asyncio

            async def send():
                async with httpx.AsyncClient(
                    transport=transport, base_url="http://localhost", timeout=30
                ) as client:
                    return await client.request(method, path, **options)

            return asyncio.run(send())

        def post(self, path, body):
            return self("POST", f"/api/tokenizers{path}", json=body)

        def keep(self, text):
            return self("POST", "/api/texts", content=text.encode()).json()

    return Client()

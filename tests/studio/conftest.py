"""Three tokenizers that were trained in a moment, and the Studio over them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from lmworks.studio.app import create_app
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
def studio_app(tokenizers: dict[str, PipelineTokenizer]) -> Any:
    """`studio_app(**options)`: a Studio that holds the three."""

    def make(**options: Any) -> Any:
        app = create_app(**options)
        for name, tokenizer in tokenizers.items():
            app.state.studio.tokenizers.put(name, name, tokenizer)
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

"""Text, hard strings and tokenizers that several test files use."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from lmworks.core.gguf import write_gguf
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import SPECIAL_TOKENS, train_bpe

TEXTS = [text for _, text in sorted(topics.items())]

_PLANES: list[Callable[[random.Random], int]] = [
    lambda draw: draw.randrange(32, 127),
    lambda draw: draw.randrange(0x20, 0xD800),
    lambda draw: draw.randrange(0xE000, 0x110000),
    lambda draw: draw.randrange(0x1F300, 0x1F700),
]
_CHOSEN = [
    *("", " ", "\n\n\n", "   a  b ", "don't DON'T we'll'S 'ſ", "\t\tif x:\n\t\t\treturn 1\n"),
    "👩‍👩‍👧 🇩🇪 e\u0301 ﷽ \U000e0041",
    "你好，世界 こんにちは мир ١٢٣ ½ 1234567 ²³",
    "a\u00a0b\u2003c\u200bd\x1cx\x85y\u2028z\ufeff",
    "x\r\n\r\n y \r z  \n  \n\t \t",
    "def f(x):\n    return {'a': [1, 2.5e-3], \"b\": x->y}  # done!!! ==== ----",
    *("<|im_start|", "<|endoftext|><|pad|>", "|im_end|>", "<|im_end|><|im_end|", "<<|pad|>>"),
]


def hard_strings(count: int, heldout: list[str] = TEXTS[1::2]) -> list[str]:
    """Held-out text, code, emoji, every byte, random Unicode, broken UTF-8, special tokens."""
    draw = random.Random(7)
    strings = [chr(i) for i in range(256)]
    strings += [bytes([i]).decode("utf-8", "replace") for i in range(256)]
    strings += [*_CHOSEN, *(f"x{token}y {token}" for token in SPECIAL_TOKENS)]
    while len(strings) < count:
        kind = draw.randrange(5)
        if kind == 0:
            text = draw.choice(heldout)
            start = draw.randrange(len(text))
            strings.append(text[start : start + draw.randrange(1, 200)])
        elif kind == 1:
            size = draw.randrange(1, 20)
            strings.append("".join(chr(draw.choice(_PLANES)(draw)) for _ in range(size)))
        elif kind == 2:
            strings.append(draw.randbytes(draw.randrange(1, 40)).decode("utf-8", "replace"))
        elif kind == 3:
            strings.append("".join(draw.choices(" \n\t\r'ab1_.é🙂", k=draw.randrange(1, 30))))
        else:
            parts = [*SPECIAL_TOKENS, "<", "|", "im_end", " ", "\n", "a"]
            strings.append("".join(draw.choices(parts, k=draw.randrange(1, 9))))
    return strings


@pytest.fixture(scope="session")
def trained() -> PipelineTokenizer:
    """1,500 entries learnt from every second topic; the others are held out."""
    return train_bpe(TEXTS[::2], vocab_size=1500)


@pytest.fixture(scope="session")
def small() -> PipelineTokenizer:
    """280 entries, made in no time."""
    return train_bpe(["the cat sat on the mat. " * 20], vocab_size=280)


@pytest.fixture(scope="session")
def hard() -> list[str]:
    """10,000 strings on which tokenizers like to differ."""
    return hard_strings(10_000)


# What llama.cpp wants to know of a model before it looks at the vocabulary.
LLAMA = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 8,
    "llama.attention.head_count": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


@pytest.fixture
def llama_cpp(tmp_path: Path) -> Callable[[dict[str, Any]], Any]:
    """llama.cpp with the vocabulary in these keys; the test is skipped where there is none."""
    path = Path(__file__).parents[2] / "bench" / "llama_vocab.py"
    spec = importlib.util.spec_from_file_location("llama_vocab", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        module.library()
    except (ImportError, OSError) as error:
        pytest.skip(str(error))

    def loaded(metadata: dict[str, Any]) -> Any:
        write_gguf(tmp_path / "vocabulary.gguf", LLAMA | metadata, {})
        return module.LlamaVocabulary(tmp_path / "vocabulary.gguf")

    return loaded

"""Vectors against transformers' pooled states; limits, prompts, and who stands beside whom."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lmworks
from lmworks.core.errors import UserError
from lmworks.inference.embedding import Embedder, load_embedder
from lmworks.inference.row_batches import RowBatches
from lmworks.inference.streams import EngineClosed
from lmworks.inference.text_rows import Row, TextTooLong

TEXTS = ["a short text", "b", "words " * 30, "ß and ☃", "", "[SEP] is text", "end"]


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def sentence_folder(tmp_path_factory: pytest.TempPathFactory, transformers: Any) -> Path:
    """A small BERT as sentence-transformers would have written it, with prompts and a limit."""
    folder = tmp_path_factory.mktemp("sentence")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "short", "text", "words"]
    vocabulary += ["is", "and", "end", "query", ":", "[", "]", "sep", "ß", "☃", "ss"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    transformers.BertModel(config).eval().save_pretrained(folder)
    steps = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_N", "Normalize")]
    write(
        folder / "modules.json",
        [
            {"idx": i, "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (name, path, kind) in enumerate(steps)
        ],
    )
    write(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": False})
    write(
        folder / "config_sentence_transformers.json",
        {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": None},
    )
    return folder


def write(path: Path, values: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values))


@pytest.fixture(scope="module")
def embedder(sentence_folder: Path) -> Embedder:
    return load_embedder(sentence_folder)


def pooled(folder: Path, transformers: Any, texts: list[str]) -> np.ndarray:
    """The mean of transformers' last states, at length one, each text by itself."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    found = []
    with torch.no_grad():
        for text in texts:
            batch = tokenizer([text], truncation=True, max_length=24, return_tensors="pt")
            states = model(**batch).last_hidden_state.mean(1)
            found.append(torch.nn.functional.normalize(states, dim=-1)[0].numpy())
    return np.stack(found)


def test_vectors_are_those_of_transformers(sentence_folder, transformers, embedder):
    texts = [text for text in TEXTS if "[SEP]" not in text]  # which stays text here
    found = embedder.encode(texts)
    assert found.shape == (len(texts), 32) and found.dtype == np.float32
    np.testing.assert_allclose(found, pooled(sentence_folder, transformers, texts), atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 0.05


def test_company_changes_nothing(embedder):
    alone = np.stack([embedder.encode(text) for text in TEXTS])
    np.testing.assert_allclose(embedder.encode(TEXTS), alone, atol=1e-6)


def test_prompts_go_before_texts(sentence_folder, transformers, embedder):
    np.testing.assert_allclose(
        embedder.encode(["a b"], prompt="query"),
        pooled(sentence_folder, transformers, ["query: a b"]),
        atol=1e-5,
    )
    assert np.array_equal(embedder.encode("a b"), embedder.encode("a b", prompt="document"))
    with pytest.raises(UserError, match="unknown prompt 'querry': did you mean 'query'"):
        embedder.encode("a", prompt="querry")


def test_too_long_a_text_is_cut_or_told(embedder):
    assert np.array_equal(embedder.encode("words " * 22), embedder.encode("words " * 60))
    with pytest.raises(TextTooLong, match="input 1 has 62 tokens and the model reads 24"):
        embedder.encode(["a", "words " * 60], truncate=False)


def test_fewer_dimensions(embedder):
    whole, cut = embedder.encode(["a", "b"]), embedder.encode(["a", "b"], dimensions=8)
    wanted = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, wanted, atol=1e-6)
    for wrong in (0, 33, -1):
        with pytest.raises(UserError, match="dimensions must be from 1 to this model's 32"):
            embedder.encode("a", dimensions=wrong)
    assert embedder.encode([]).shape == (0, 32)


def test_a_decoder_makes_vectors_of_its_states(tmp_path, tiny_model, tokenizer):
    from lmworks.models.save import save_model

    save_model(tiny_model, tmp_path, tokenizer=tokenizer)
    ids = [tokenizer.encode(text) for text in ("a text", "another one")]
    with torch.no_grad():
        states = [tiny_model.hidden_states(torch.tensor([row]))[0] for row in ids]
    for pooling, wanted in (
        ("auto", [s.mean(0) for s in states]),
        ("last", [s[-1] for s in states]),
    ):
        embedder = lmworks.load_embedder(tmp_path, pooling=pooling)
        rows = torch.nn.functional.normalize(torch.stack(wanted), dim=-1).numpy()
        np.testing.assert_allclose(embedder.encode(["a text", "another one"]), rows, atol=1e-5)
    plain = lmworks.load_embedder(tmp_path, normalize=False).encode("a text")
    np.testing.assert_allclose(plain, states[0].mean(0).numpy(), atol=1e-5)


@pytest.mark.weights
def test_minilm_is_that_of_transformers(transformers):
    from lmworks.core.references import resolve

    try:
        folder = resolve("minilm-l6").path
    except UserError as error:
        pytest.skip(str(error))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    texts = ["A man plays a guitar.", "Someone makes music.", "It rains in Paris. " * 60, "ß"]
    batch = tokenizer(texts, truncation=True, max_length=256, padding=True, return_tensors="pt")
    with torch.no_grad():
        states, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
        wanted = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    found = load_embedder(folder).encode(texts)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)
    assert found[0] @ found[1] > 0.4 > found[0] @ found[2]


def test_what_makes_no_vectors_is_told(tmp_path):
    with pytest.raises(UserError, match="remote endpoint"):
        load_embedder("https://example.invalid/v1#m")
    with pytest.raises(UserError):
        load_embedder(tmp_path)


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("sentence_bert_config.json", {"max_seq_length": "many"}, "number of tokens"),
        ("config_sentence_transformers.json", {"prompts": ["query"]}, "texts by name"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "q"},
            "not among the prompts",
        ),
        ("config_sentence_transformers.json", [1], "must be an object"),
    ],
)
def test_bad_settings_are_one_line(tmp_path, file, values, words):
    from lmworks.models.sentence_transformers import sentence_settings

    write(tmp_path / file, values)
    with pytest.raises(UserError, match=words):
        sentence_settings(tmp_path)


# --- batches of many requests ---


def row(length: int) -> Row:
    return Row(ids=(1,) * length, types=(0,) * length)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 40), max_size=20), min_size=1, max_size=6))
def test_every_row_gets_its_own_result(requests):
    batches: list[list[int]] = []

    def run(rows):
        batches.append([len(each) for each in rows])
        return [len(each) for each in rows]

    runner = RowBatches(run, tokens_at_once=60, rows_at_once=8)
    waiting = [runner.submit([row(length) for length in lengths]) for lengths in requests]
    for request, lengths in zip(waiting, requests, strict=True):
        assert request.wait() == lengths
    runner.close()
    assert sum(map(len, batches)) == sum(map(len, requests))
    for batch in batches:
        assert len(batch) <= 8
        assert len(batch) == 1 or max(batch) * len(batch) <= 60


def test_a_short_request_does_not_wait_for_a_long_one():
    gate, order = threading.Event(), []

    def run(rows):
        gate.wait(10)
        order.append(len(rows[0]))
        return [0] * len(rows)

    runner = RowBatches(run, rows_at_once=4)
    long = runner.submit([row(100) for _ in range(40)])
    short = runner.submit([row(3)])
    gate.set()
    short.wait()
    long.wait()
    runner.close()
    assert order.index(3) <= 2


def test_a_failure_is_the_batches_alone_and_closing_ends_the_rest():
    def run(rows):
        if len(rows[0]) == 7:
            raise ValueError("broken")
        return [0] * len(rows)

    runner = RowBatches(run, rows_at_once=1)
    bad, good = runner.submit([row(7)]), runner.submit([row(30)])
    with pytest.raises(ValueError, match="broken"):
        bad.wait()
    assert good.wait() == [0]
    cancelled = runner.submit([row(5)])
    cancelled.cancel()
    with pytest.raises(EngineClosed):
        cancelled.wait()
    runner.close()
    with pytest.raises(EngineClosed):
        runner.submit([row(5)])

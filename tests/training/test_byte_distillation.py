"""Bytes that tokens stand for: against sums over all tokens, and students of another tokenizer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.training import preference_setup as setup
from tests.training.tiny import tiny_model

from lmworks.core.config import from_mapping
from lmworks.core.errors import UserError
from lmworks.models.load import load_model
from lmworks.tokenizers.byte_trie import STOP, ByteTrie
from lmworks.tokenizers.train import train_bpe
from lmworks.training.byte_rows import ByteRows, Passage, Reader, cut, said_bytes
from lmworks.training.distill import DistillConfig, distill
from lmworks.training.objectives.byte_distillation import ByteDistillation, byte_logprobs

TEXTS = ["the cat sat on the mat and the hat", "a dog and a log in the fog, naïve 日本"] * 3


class FixedLogits:
    """A model whose states are its logits."""

    config = type("C", (), {"vocab_size": 0})

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return states


def spelt(tokens: list[bytes], ids: list[int]) -> tuple[bytes, list[int]]:
    starts = np.cumsum([0, *(len(tokens[i]) for i in ids)]).tolist()
    return b"".join(tokens[i] for i in ids), starts[:-1]


def by_hand(
    tokens: list[bytes], ids: list[int], probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(places, 257) and (places,): the same by asking every token at every boundary."""
    text, starts = spelt(tokens, ids)
    found, rest = np.zeros((len(text), 257)), np.zeros(len(text))
    path = 1.0
    for number, start in enumerate(starts):
        for token, p in zip(tokens, probabilities[number], strict=True):
            for place in range(start, len(text)):
                depth = place - start
                if token[:depth] != text[start:place] or len(token) < depth:
                    continue
                if not token:
                    if depth == 0:
                        found[place, STOP] += path * p
                elif len(token) > depth:
                    found[place, token[depth]] += path * p
                elif token and place != start + len(tokens[ids[number]]):
                    rest[place] += path * p
        path *= probabilities[number][ids[number]]
    whole = found.sum(1) + rest
    return (found + rest[:, None] / 257) / whole[:, None], rest / whole


def ours(tokens: list[bytes], ids: list[int], logits: torch.Tensor) -> Any:
    trie = ByteTrie(tokens)
    text, starts = spelt(tokens, ids)
    covers = trie.covers(text, starts)
    table = np.stack([getattr(covers, f.name) for f in dataclasses.fields(covers)])
    args = (torch.from_numpy(table), torch.from_numpy(trie.order), len(text))
    return byte_logprobs(FixedLogits(), logits, torch.tensor(ids), *args)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_bytes_are_sums_over_all_tokens(data: Any) -> None:
    letters = [b"a", b"b", b"c"]
    longer = data.draw(
        st.lists(st.text("abc", min_size=2, max_size=5).map(str.encode), unique=True, max_size=8)
    )
    tokens = [*letters, b"", *longer, b""]
    usable = [i for i, token in enumerate(tokens) if token]
    ids = data.draw(st.lists(st.sampled_from(usable), min_size=1, max_size=6))
    seed = data.draw(st.integers(0, 99))
    logits = torch.randn(
        len(ids), len(tokens), generator=torch.Generator().manual_seed(seed), dtype=torch.float32
    ).mul(2)
    found = ours(tokens, ids, logits)
    wanted, rest = by_hand(tokens, ids, logits.softmax(-1).double().numpy())
    np.testing.assert_allclose(found.logprobs.exp().numpy(), wanted, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found.rest.numpy(), rest, rtol=1e-5, atol=1e-9)
    own = logits.log_softmax(-1)[range(len(ids)), ids]
    torch.testing.assert_close(found.label_logprobs.float(), own)


def test_tokens_of_one_byte_are_the_bytes() -> None:
    tokens = [bytes([i]) for i in range(256)] + [b""]
    logits = torch.randn(5, 257, generator=torch.Generator().manual_seed(0))
    found = ours(tokens, [104, 101, 108, 108, 111], logits)
    torch.testing.assert_close(found.logprobs.float(), logits.log_softmax(-1))
    assert not found.rest.any()


def test_gradients_are_those_of_the_sums() -> None:
    tokens = [b"a", b"b", b"ab", b"abb", b"ba", b""]
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(2)).requires_grad_()
    ids = [2, 0, 1]

    def value(at: torch.Tensor) -> torch.Tensor:
        return (ours(tokens, ids, at).logprobs[:, [97, 98]] * torch.tensor([0.3, 0.7])).sum()

    value(logits).backward()
    assert logits.grad is not None
    for place in range(logits.numel()):
        step = torch.zeros(logits.numel())
        step[place] = 1e-2
        with torch.no_grad():
            slope = value(logits + step.view_as(logits)) - value(logits - step.view_as(logits))
        assert logits.grad.flatten()[place].item() == pytest.approx(slope.item() / 2e-2, abs=2e-3)


def tokenizers() -> tuple[Any, Any]:
    one = setup.tiny_tokenizer()
    other = train_bpe(
        ["the cat and the dog sat in a fog", "words of another kind"] * 4, vocab_size=290
    )
    return one, other


def readers() -> tuple[Reader, Reader]:
    one, other = tokenizers()
    return tuple(Reader(t, length=60, vocab_size=t.vocab_size) for t in (one, other))  # type: ignore[return-value]


def data(**changes: Any) -> ByteRows:
    student, teacher = readers()
    passages = list(cut(TEXTS, (student, teacher)))
    return ByteRows(passages, student=student, teacher=teacher, batch_size=3, seed=0, **changes)


def models() -> tuple[Any, Any]:
    shapes = [reader.trie.order.size for reader in readers()]
    return tuple(tiny_model(size, seed, length=64).eval() for seed, size in enumerate(shapes))  # type: ignore[return-value]


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tmp_path: Path) -> None:
    student, _ = readers()
    model = models()[0]
    rows = ByteRows(
        [Passage(text=text) for text in TEXTS],
        student=student,
        teacher=student,
        batch_size=3,
        seed=0,
    )
    rows.store_top(model, 64, tmp_path / "top")
    objective = ByteDistillation(order=torch.from_numpy(student.trie.order))
    loss = objective(model, rows.collate([0, 1]))
    assert loss.metrics["divergence"] < 1e-3
    other = objective(models()[0].__class__(model.config), rows.collate([0, 1]))  # fresh weights
    assert other.metrics["divergence"] > loss.metrics["divergence"]


def test_another_tokenizers_teacher_is_followed(tmp_path: Path) -> None:
    student, teacher = models()
    rows = data()
    size = rows.store_top(teacher, 16, tmp_path / "top")
    assert size == sum((tmp_path / f"top.{n}.npy").stat().st_size for n in ("symbols", "logprobs"))
    order = torch.from_numpy(readers()[0].trie.order)
    objective = ByteDistillation(label_weight=0.0, order=order)
    batch = rows.collate(range(len(rows)))
    # Everything of the text is asked for, by both, in whatever tokens.
    assert int(batch.counted.sum()) == sum(len(text.encode()) for text in TEXTS)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    far = []
    for _ in range(14):
        optimizer.zero_grad()
        loss = objective(student, batch)
        loss.value.backward()
        optimizer.step()
        far.append(loss.metrics["divergence"])
    assert far[-1] < 0.7 * far[0]
    halves = [objective(student, batch.rows(*part)) for part in ((0, 2), (2, 6))]
    together = objective(student, batch)
    mean = sum(h.value.item() * h.num_targets for h in halves) / together.num_targets
    assert together.value.item() == pytest.approx(mean, rel=1e-5)


def test_pieces_fit_both_and_lose_nothing() -> None:
    both = readers()
    text = " ".join(TEXTS * 5)
    pieces = [passage.text for passage in cut([text], both)]
    assert "".join(pieces) == text and len(pieces) > 5
    assert all(len(r.tokenizer.encode(p)) < r.length for p in pieces for r in both)


def test_answers_end_for_both() -> None:
    student, _ = readers()
    row = setup.rows(1)[0]
    read = student.read(
        Passage(text=row["chosen"][-1]["content"], messages=row["prompt"], ended=True)
    )
    assert read is not None and read.ended
    bytes_ = said_bytes(models()[0], read, student.trie)
    assert len(bytes_.logprobs) == len(read.text) + 1
    torch.testing.assert_close(
        bytes_.logprobs.exp().sum(-1), torch.ones(len(bytes_.logprobs)).double()
    )


def write(folder: Path, tokenizer: Any, seed: int) -> Path:
    from lmworks.models.save import save_model

    folder.mkdir()
    save_model(tiny_model(tokenizer.vocab_size, seed, length=64), folder, tokenizer=tokenizer)
    return folder


@pytest.mark.parametrize("top_k", [0, 300])  # more than there are symbols
def test_the_stage_teaches_across_tokenizers(tmp_path: Path, top_k: int) -> None:
    one, other = tokenizers()
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("train", "heldout"):
        lines = [
            json.dumps({"id": str(i), "group": "g", "source": "", "title": "", "text": text})
            for i, text in enumerate(TEXTS)
        ]
        (corpus / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    values: dict[str, Any] = {
        "teacher": str(write(tmp_path / "teacher", other, 1)),
        "student": str(write(tmp_path / "student", one, 0)),
        "corpus": str(corpus),
        "top_k": top_k,
        "num_steps": 6,
        "batch_size": 3,
        "threads": 1,
        "loop": {"warmup_steps": 1, "optimizer": {"learning_rate": 1e-2}},
    }
    artifact = distill(from_mapping(DistillConfig, values), tmp_path / "out")
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert history["heldout_loss"][-1] < history["heldout_loss"][0]
    assert artifact.metrics["teacher_bytes"] > 0 and artifact.metrics["heldout_divergence"] > 0
    assert load_model(tmp_path / "out").config.vocab_size == one.vocab_size
    with pytest.raises(UserError, match=r"features .* one tokenizer"):
        values |= {"kind": "features", "top_k": 0}
        distill(from_mapping(DistillConfig, values), tmp_path / "no")

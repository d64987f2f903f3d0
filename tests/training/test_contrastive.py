"""Contrastive objectives beside the formulas of sentence-transformers, and the stage `embed`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.training import preference_setup as setup

from lmworks.core.config import from_mapping
from lmworks.core.errors import UserError
from lmworks.models.load import load_model
from lmworks.tokenizers.load import load_tokenizer
from lmworks.training.embed import EmbedConfig, embed, embedding_model, ranks_of
from lmworks.training.embedding_rows import Triples, as_triple
from lmworks.training.objectives.base import build_objective
from lmworks.training.preferences.rows import BadRow


def triples(count: int = 6, *, negatives: int = 1) -> list[Any]:
    found = []
    for number, row in enumerate(setup.rows(count, as_text=True)):
        wrong = [row["rejected"], f"{number} wrong"][:negatives]
        named = {"anchor": row["prompt"], "positive": row["chosen"], "negative": wrong}
        found.append(as_triple("x", named))
    return found


def data(count: int = 6, *, negatives: int = 1) -> Triples:
    rows = triples(count, negatives=negatives)
    return Triples(rows, setup.tiny_tokenizer(), length=64, batch_size=count, seed=0)


def encoder() -> Any:
    return embedding_model(setup.tiny_model(), "mean")


def vectors(model: Any, texts: Any) -> torch.Tensor:
    found: torch.Tensor = model(texts.input_ids, attention_mask=texts.attention_mask)
    return found


def multiple_negatives(a: torch.Tensor, p: torch.Tensor, n: list[torch.Tensor]) -> torch.Tensor:
    """MultipleNegativesRankingLoss of sentence-transformers 3: scale 20, cosines."""
    scores = F.normalize(a, dim=1) @ F.normalize(torch.cat([p, *n]), dim=1).T * 20.0
    return F.cross_entropy(scores, torch.arange(len(scores)))


@pytest.mark.parametrize("negatives", [0, 1, 2])
def test_in_batch_is_their_formula(negatives: int) -> None:
    model, batch = encoder(), data(negatives=negatives).collate(range(6))
    a, p = vectors(model, batch.anchors), vectors(model, batch.positives)
    n = [vectors(model, batch.negatives[str(i)]) for i in range(negatives)]
    loss = build_objective("in_batch")(model, batch)
    torch.testing.assert_close(loss.value, multiple_negatives(a, p, n))
    both = build_objective("in_batch", {"symmetric": True})(model, batch)
    scores = F.normalize(p, dim=1) @ F.normalize(a, dim=1).T * 20.0
    back = F.cross_entropy(scores, torch.arange(6))
    torch.testing.assert_close(both.value, (multiple_negatives(a, p, n) + back) / 2)
    # MatryoshkaLoss of theirs: the sum over the first so many numbers.
    sizes = [64, 16, 8]
    cut = build_objective("in_batch", {"dimensions": sizes})(model, batch)
    expected = sum(multiple_negatives(a[:, :d], p[:, :d], [x[:, :d] for x in n]) for d in sizes)
    torch.testing.assert_close(cut.value, expected)


def test_triplet_is_their_formula() -> None:
    model, batch = encoder(), data().collate(range(6))
    a, p, n = (
        vectors(model, texts) for texts in (batch.anchors, batch.positives, batch.negatives["0"])
    )
    loss = build_objective("triplet", {"distance": "euclidean", "margin": 0.5})(model, batch)
    expected = F.triplet_margin_loss(a, p, n, margin=0.5)
    torch.testing.assert_close(loss.value, expected)
    loss = build_objective("triplet", {"margin": 0.2})(model, batch)
    apart = [1 - F.cosine_similarity(a, x) for x in (p, n)]
    torch.testing.assert_close(loss.value, (apart[0] - apart[1] + 0.2).clamp(min=0).mean())
    with pytest.raises(UserError, match="the rows have no 'negative'"):
        build_objective("triplet")(model, data(negatives=0).collate(range(6)))


@pytest.mark.parametrize("size", [1, 4, 6])
def test_gradient_caching_changes_nothing(size: int) -> None:
    batch = data().collate(range(6))
    found = []
    for rows in (0, size):
        model = encoder().double()
        loss = build_objective("in_batch", {"rows_at_once": rows})(model, batch)
        loss.value.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert found[0].abs().max() > 1e-3
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-8)


def test_gradient_caching_holds_one_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, most = encoder(), 0
    plain = model.hidden_states

    def watched(input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal most
        most = max(most, len(input_ids))
        return plain(input_ids, *args, **kwargs)  # type: ignore[no-any-return]

    monkeypatch.setattr(model, "hidden_states", watched)
    build_objective("in_batch", {"rows_at_once": 2})(
        model, data().collate(range(6))
    ).value.backward()
    assert most == 2


def test_a_text_that_two_rows_have_is_no_wrong_answer() -> None:
    rows = [
        as_triple("x", {"anchor": f"ask {i}", "positive": "the same" if i < 2 else f"other {i}"})
        for i in range(4)
    ]
    found = Triples(rows, setup.tiny_tokenizer(), length=64, batch_size=4, seed=0)
    model, batch = encoder(), found.collate(range(4))
    a, p = (F.normalize(vectors(model, t), dim=1) for t in (batch.anchors, batch.positives))
    scores = a @ p.T * 20.0
    scores[0, 1] = scores[1, 0] = -torch.inf
    expected = F.cross_entropy(scores, torch.arange(4))
    torch.testing.assert_close(build_objective("in_batch")(model, batch).value, expected)


def test_sizes_beyond_the_vector_are_refused() -> None:
    with pytest.raises(UserError, match="the vectors have 64 numbers"):
        build_objective("in_batch", {"dimensions": [65]})(encoder(), data().collate(range(6)))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"anchor": "a"}, "'positive' must be a text"),
        ({"query": "", "positive": "b"}, "'query' is empty"),
        ({"anchor": "a", "positive": "b", "negative": ["c", " "]}, "negative 1 is empty"),
        ({"anchor": "a", "positive": "b", "negative": "b"}, "are the same"),
        ({"messages": []}, "'anchor' must be a text"),
    ],
)
def test_bad_rows_name_the_place(row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRow, match=f"here: .*{said}"):
        as_triple("here", row)


def test_a_conversation_is_a_question_and_its_answer() -> None:
    row = setup.rows(1)[0]
    found = as_triple("x", {"messages": row["prompt"] + row["chosen"], "document": "d"})
    assert (found.anchor, found.positive, found.group) == (
        row["prompt"][0]["content"],
        row["chosen"][0]["content"],
        "d",
    )


def test_ties_count_against() -> None:
    rows = triples(4, negatives=0)
    found = Triples(rows, setup.tiny_tokenizer(), length=64, batch_size=4, seed=0)
    model = encoder()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert ranks_of(model, found) == [4, 4, 4, 4]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    setup.write_tiny(folder)
    return folder


@pytest.mark.parametrize("values", [{"dimensions": [64, 16]}, {"objective": "triplet"}])
def test_an_encoder_learns_and_is_read_elsewhere(
    values: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"anchor": r["prompt"], "positive": r["chosen"], "negative": r["rejected"]}
        for r in setup.rows(40, as_text=True)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {
        "model": str(base),
        "pairs": str(pairs),
        "num_steps": 25,
        "batch_size": 8,
        "heldout": 0.3,
        "threads": 1,
        "loop": {"warmup_steps": 2, "optimizer": {"learning_rate": 2e-3}},
    }
    metrics = embed(from_mapping(EmbedConfig, settings | values), tmp_path / "out").metrics
    assert metrics["heldout_mrr"] > metrics["heldout_mrr_before"]
    out = tmp_path / "out"
    model, tokenizer = load_model(out), load_tokenizer(out)
    ids = torch.tensor([tokenizer.encoding(rows[0]["anchor"]).ids])
    theirs = transformers.AutoModel.from_pretrained(out).eval()
    states = theirs(ids).last_hidden_state
    torch.testing.assert_close(
        model(ids), F.normalize(states.mean(1), dim=-1), rtol=1e-4, atol=1e-5
    )
    steps = json.loads((out / "modules.json").read_text())
    assert [step["path"] for step in steps] == ["", "1_Pooling", "2_Normalize"]


def test_an_encoder_of_bert_stays_one(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from lmworks.models.sentence_transformers import save_sentence_model

    config = transformers.BertConfig(
        vocab_size=97,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    model = embedding_model(load_model(tmp_path / "bert"), "first")
    save_sentence_model(model, tmp_path / "out")
    again = load_model(tmp_path / "out")
    assert again.config == model.config
    ids = torch.tensor([[5, 6, 7]])
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    expected = F.normalize(theirs(ids).last_hidden_state[:, 0], dim=-1)
    torch.testing.assert_close(again(ids), expected, rtol=1e-4, atol=1e-5)

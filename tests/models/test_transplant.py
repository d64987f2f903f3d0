"""Transplanting: nothing changes where nothing is new, and each method is exact on made cases."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.models.transplant.base import METHODS, NEED_AUXILIARY, Auxiliary, Relation, method
from lmworks.models.transplant.donor import donor_space
from lmworks.models.transplant.omp import pursue
from lmworks.models.transplant.relation import relate
from lmworks.models.transplant.sparsemax import sparsemax
from lmworks.models.transplant.stage import TransplantConfig, transplant_stage
from lmworks.models.transplant.static_embedding import (
    StaticEmbeddingConfig,
    _ppmi,
    static_embedding,
)
from lmworks.models.transplant.surgery import transplant
from lmworks.tokenizers.extend import extend
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import read_texts, train_bpe

TEXTS = [text for _, text in sorted(topics.items())]
FIELD = TEXTS[30:50]
SMALL = StaticEmbeddingConfig(dim=32)


@pytest.fixture(scope="module")
def old() -> PipelineTokenizer:
    return train_bpe(TEXTS[:12], vocab_size=500)


@pytest.fixture(scope="module")
def new(old: PipelineTokenizer) -> PipelineTokenizer:
    return extend(old, FIELD, add=150, special_tokens=["<|law|>"])


@pytest.fixture(scope="module")
def other() -> PipelineTokenizer:
    return train_bpe(FIELD, vocab_size=450, pattern="llama3", special_tokens=["<s>", "</s>"])


@pytest.fixture(scope="module")
def auxiliary(old: PipelineTokenizer, new: PipelineTokenizer) -> Auxiliary:
    return static_embedding(old, new, relate(old, new), FIELD, SMALL)


def tiny(vocab_size: int, *, tied: bool = True) -> Model:
    model = Model(
        ModelConfig.uniform(
            vocab_size=vocab_size,
            hidden_size=32,
            num_hidden_layers=2,
            mixer=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8),
            feed_forward=MLPConfig(intermediate_size=48),
            tie_word_embeddings=tied,
            max_position_embeddings=256,
        )
    )
    model.reset_parameters(torch.Generator().manual_seed(3))
    return model.eval()


def ids(tokenizer: PipelineTokenizer, text: str) -> torch.Tensor:
    return torch.tensor([tokenizer.encode(text)])


# The cut


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_the_same_tokenizer_changes_no_bit(
    name: str, tied: bool, old: PipelineTokenizer, auxiliary: Auxiliary
) -> None:
    model = tiny(512, tied=tied)  # 12 rows of padding
    space = Auxiliary(new=auxiliary.old, old=auxiliary.old)
    same = transplant(model, relate(old, old), name, auxiliary=space, pad_to_multiple_of=64)
    assert same.config == model.config
    text = ids(old, TEXTS[5][:400])
    with torch.no_grad():
        assert torch.equal(same(text)[..., :500], model(text)[..., :500])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_text_without_new_tokens_has_the_same_hidden_states(
    name: str, tied: bool, old: PipelineTokenizer, new: PipelineTokenizer, auxiliary: Auxiliary
) -> None:
    model = tiny(500, tied=tied)
    changed = transplant(model, relate(old, new), name, auxiliary=auxiliary)
    assert changed.config.vocab_size == new.vocab_size == 651
    text = ids(old, "q w zz 0 xx")
    assert torch.equal(text, ids(new, "q w zz 0 xx"))
    with torch.no_grad():
        assert torch.equal(changed.hidden_states(text), model.hidden_states(text))
        close = {"rtol": 0.0, "atol": 1e-6}  # another shape of the head's product, other rounding
        torch.testing.assert_close(changed(text)[..., :500], model(text), **close)
    for key, value in changed.named_parameters():
        if "embed_tokens" not in key and "lm_head" not in key:
            assert value.data_ptr() == model.get_parameter(key).data_ptr()
    assert (changed.lm_head is None) is tied


@pytest.mark.parametrize("name", METHODS)
def test_rows_do_not_depend_on_anything_but_arguments(
    name: str, old: PipelineTokenizer, new: PipelineTokenizer, auxiliary: Auxiliary
) -> None:
    rows = tiny(500).embed_tokens.weight.detach()
    relation = relate(old, new)
    first = method(name)(rows, relation, auxiliary, seed=5)
    torch.manual_seed(99)
    assert torch.equal(first, method(name)(rows.clone(), relation, auxiliary, seed=5))
    assert first.shape == (151, 32) and torch.isfinite(first).all()


def test_a_head_of_its_own_gets_its_own_rows(
    old: PipelineTokenizer, new: PipelineTokenizer
) -> None:
    model = tiny(500, tied=False)
    changed = transplant(model, relate(old, new), "subtokens")
    pieces = old.encode(new.decode_bytes([640]))
    assert len(pieces) > 1 and isinstance(model.lm_head, torch.nn.Linear)
    for before, after in (
        (model.embed_tokens.weight, changed.embed_tokens.weight),
        (model.lm_head.weight, changed.get_parameter("lm_head.weight")),
    ):
        torch.testing.assert_close(after[640], before[pieces].mean(0))


def test_padding_is_the_mean(old: PipelineTokenizer, new: PipelineTokenizer) -> None:
    model = tiny(512)
    changed = transplant(model, relate(old, new), "mean", pad_to_multiple_of=64)
    assert changed.config.vocab_size == 704
    expected = model.embed_tokens.weight[:500].mean(0).expand(53, -1)
    torch.testing.assert_close(changed.embed_tokens.weight[651:], expected)


def test_what_can_not_be_cut_is_named(old: PipelineTokenizer, new: PipelineTokenizer) -> None:
    relation = relate(old, new)
    with pytest.raises(UserError, match="unknown transplant_method 'focsu': did you mean 'focus'"):
        transplant(tiny(500), relation, "focsu")
    with pytest.raises(UserError, match="give some with --text"):
        transplant(tiny(500), relation, "omp")
    with pytest.raises(UserError, match="500 tokens and the model 400 rows"):
        transplant(tiny(400), relation, "mean")
    with pytest.raises(UserError, match="pad_to_multiple_of = 0"):
        transplant(tiny(500), relation, "mean", pad_to_multiple_of=0)
    apart = dataclasses.replace(relation, shared=np.full(651, -1))
    with pytest.raises(UserError, match="share no token"):
        transplant(tiny(500), apart, "mean")
    damaged = tiny(500)
    with torch.no_grad():
        damaged.embed_tokens.weight[:] = 3e38
    with pytest.raises(UserError, match="not finite"):
        transplant(damaged, relation, "mean")


# How vocabularies relate


def test_an_extended_vocabulary(old: PipelineTokenizer, new: PipelineTokenizer) -> None:
    relation = relate(old, new)
    assert relation.shared[:500].tolist() == list(range(500))
    assert relation.missing.tolist() == list(range(500, 651))
    for token, pieces in zip(relation.missing, relation.pieces):
        whole = b"".join(old.decode_bytes([piece]) for piece in pieces)
        assert whole == (b"" if token == 650 else new.decode_bytes([int(token)]))
    assert not relation.plain[:4].any() and relation.plain[4:].all()


def test_another_vocabulary(old: PipelineTokenizer, other: PipelineTokenizer) -> None:
    relation = relate(old, other)
    for token, there in enumerate(relation.shared.tolist()):
        if there >= 0:
            assert other.decode_bytes([token]) == old.decode_bytes([there])
    assert (relation.shared[2:] >= 4).sum() > 300
    assert relation.shared[0] == relation.shared[1] == -1 and relation.pieces[:2] == ((), ())


def test_special_tokens_go_by_text_then_by_role(old: PipelineTokenizer) -> None:
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": None, "chat_template": None}
    tokens = ("<s>", "</s>", "<|im_end|>", "<|pad|>")
    made = train_bpe(TEXTS[:2], vocab_size=300, special_tokens=tokens)
    named = PipelineTokenizer(dataclasses.replace(made.vocabulary, **roles))
    # <|endoftext|> begins and ends a text in the old one
    assert relate(old, named).shared[:4].tolist() == [0, 0, 2, 3]


def test_a_special_token_never_takes_a_plain_row() -> None:
    plain = train_bpe(["bos bos bos"] * 5, vocab_size=300, special_tokens=["eos"])
    assert b"bos" in plain.vocabulary.tokens
    special = train_bpe(["a b"], vocab_size=262, special_tokens=["bos"])
    assert relate(plain, special).shared[0] == -1


def test_sentencepiece_and_wordpiece_find_their_words(
    old: PipelineTokenizer, tmp_path: Path
) -> None:
    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "the", "##ing", "t", "##h", "##e"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    bert = load_tokenizer(tmp_path / "vocab.txt")
    relation = relate(old, bert)
    assert old.decode_bytes([int(relation.shared[5])]) == b" the"
    assert old.decode_bytes([int(relation.shared[6])]) == b"ing"
    back = relate(bert, old)
    assert back.shared[relation.shared[5]] == 5 and back.shared[relation.shared[6]] == 6


# The methods


def relation_of(shared: list[int], pieces: list[tuple[int, ...]], num_old: int) -> Relation:
    return Relation(
        shared=np.array(shared),
        pieces=tuple(pieces),
        widths=np.ones(num_old, dtype=np.int64),
        plain=np.ones(num_old, dtype=bool),
    )


def test_random_has_the_spread_of_the_old() -> None:
    old = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 5, 9])
    relation = relation_of([0] + [-1] * 4000, [()] * 4000, 400)
    rows = method("random")(old + 7, relation, None, seed=1)
    torch.testing.assert_close(rows.mean(0), (old + 7).mean(0), atol=0.5, rtol=0)
    torch.testing.assert_close(rows.std(0), old.std(0), atol=0, rtol=0.05)
    assert not torch.equal(rows, method("random")(old + 7, relation, None, seed=2))


def test_means() -> None:
    old = torch.arange(12.0).reshape(4, 3)
    relation = relation_of([0, -1, -1], [(1, 3), ()], 4)
    average = [4.5, 5.5, 6.5]
    assert method("mean")(old, relation, None, seed=0).tolist() == [average, average]
    assert method("subtokens")(old, relation, None, seed=0).tolist() == [[6, 7, 8], average]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=30), st.floats(-10, 10))
def test_sparsemax_is_the_nearest_point_of_the_simplex(scores: list[float], shift: float) -> None:
    z = torch.tensor([scores], dtype=torch.float64)
    p = sparsemax(z)
    assert p.sum().item() == pytest.approx(1, abs=1e-9) and (p >= 0).all()
    # Optimality: z - p is one number where p > 0, and no larger elsewhere.
    gap = (z - p)[0]
    held = gap[p[0] > 0]
    assert (held - held[0]).abs().max() < 1e-9 and (gap <= held[0] + 1e-9).all()
    torch.testing.assert_close(sparsemax(z + shift), p, atol=1e-9, rtol=0)


def test_focus_by_hand() -> None:
    old = torch.tensor([[10.0, 0.0], [0.0, 10.0], [5.0, 5.0], [1.0, 1.0]])
    relation = relation_of([0, 1, 2, -1, -1], [(0, 1), (3,)], 4)
    new = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
    space = Auxiliary(new=new, old=torch.zeros(4, 2))
    rows = method("focus")(old, relation, space, seed=0)
    # cosines 1, 0.8, -1: sparsemax keeps two, 0.6 and 0.4; without a vector: the pieces
    torch.testing.assert_close(rows, torch.tensor([[6.0, 4.0], [1.0, 1.0]]))


def test_tokenadapt_by_hand() -> None:
    old = torch.tensor([[10.0, 0.0], [0.0, 10.0], [4.0, 4.0]])
    relation = dataclasses.replace(
        relation_of([0, 1, 2, -1, -1, -1], [(0, 1), (0, 1), ()], 3), widths=np.array([1, 3, 2])
    )
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    new = torch.cat([vectors, torch.tensor([[0.0, 2.0], [0.0, 0.0], [0.0, 1.0]])])
    rows = method("tokenadapt")(old, relation, Auxiliary(new=new, old=vectors), seed=0)

    def softmax(*scores: float) -> np.ndarray:
        powers = np.exp(np.array(scores) / 0.3)
        return powers / powers.sum()

    alike = softmax(0.0, 1.0)
    local = softmax((alike[0] + 0.25) / 2, (alike[1] + 0.75) / 2) @ old[:2].numpy()
    near = softmax(0.0, 1.0, 0.0) @ old.numpy()
    expected = np.stack([0.7 * local + 0.3 * near, [5.0, 5.0], near])
    torch.testing.assert_close(rows, torch.tensor(expected, dtype=torch.float32))


def test_pursuit_recovers_an_exact_sparse_sum() -> None:
    draw = torch.Generator().manual_seed(0)
    dictionary = torch.randn(300, 64, generator=draw) * torch.rand(300, 1, generator=draw)
    true_atoms = torch.stack([torch.randperm(300, generator=draw)[:5] for _ in range(40)])
    true_factors = torch.randn(40, 5, generator=draw).sign() * (
        1 + torch.rand(40, 5, generator=draw)
    )
    true_factors /= dictionary[true_atoms].norm(dim=2)
    wanted = (true_factors[:, :, None] * dictionary[true_atoms]).sum(1)
    atoms, factors = pursue(dictionary, wanted, 20)
    dense = torch.zeros(40, 300).scatter_add_(1, atoms, factors)
    expected = torch.zeros(40, 300).scatter_add_(1, true_atoms, true_factors)
    torch.testing.assert_close(dense @ dictionary, wanted, atol=1e-4, rtol=1e-4)
    exact = (dense - expected).abs().amax(1) < 1e-3 * expected.abs().amax(1)
    assert exact.float().mean() > 0.9  # greedy choices can go astray, and seldom do


def test_pursuit_is_least_squares_over_its_atoms() -> None:
    draw = torch.Generator().manual_seed(1)
    dictionary, wanted = torch.randn(90, 24, generator=draw), torch.randn(7, 24, generator=draw)
    atoms, factors = pursue(dictionary, wanted, 10)
    for row in range(7):
        assert len(set(atoms[row].tolist())) == 10
        best = torch.linalg.lstsq(dictionary[atoms[row]].T, wanted[row]).solution
        torch.testing.assert_close(factors[row], best, atol=1e-4, rtol=1e-4)


def test_pursuit_with_atoms_that_repeat() -> None:
    dictionary = torch.tensor([[2.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    atoms, factors = pursue(dictionary, torch.tensor([[3.0, 1.0], [0.0, 0.0]]), 2)
    rebuilt = (factors[:, :, None] * dictionary[atoms]).sum(1)
    torch.testing.assert_close(rebuilt, torch.tensor([[3.0, 0.0], [0.0, 0.0]]))


def test_omp_carries_sums_over(old: PipelineTokenizer, new: PipelineTokenizer) -> None:
    """Where the other space is a linear image of the true rows, the true rows come out."""
    relation = relate(old, new)
    draw = torch.Generator().manual_seed(2)
    rows = torch.randn(500, 32, generator=draw)
    truth = torch.zeros(151, 32)
    for number in range(151):
        picked = 4 + torch.randperm(496, generator=draw)[:2]
        truth[number] = rows[picked[0]] - 2 * rows[picked[1]]
    image = torch.linalg.qr(torch.randn(96, 96, generator=draw)).Q[:32]
    space = Auxiliary(new=torch.cat([rows, truth]) @ image, old=rows @ image)
    made = method("omp")(rows, relation, space, seed=0)
    torch.testing.assert_close(made, truth, atol=1e-3, rtol=1e-3)


def test_a_donor_gives_its_rows(old: PipelineTokenizer, new: PipelineTokenizer) -> None:
    donor = tiny(651)
    space = donor_space(donor, new, old, new)
    assert torch.equal(space.new, donor.embed_tokens.weight.detach())
    assert torch.equal(space.old, donor.embed_tokens.weight.detach()[:500])
    changed = transplant(tiny(500), relate(old, new), "omp", auxiliary=space)
    assert torch.isfinite(changed.embed_tokens.weight).all()


# The auxiliary embedding


def test_words_that_stand_alike_lie_near() -> None:
    draw = np.random.default_rng(0)
    animals, tools = ["cat", "dog", "cow"], ["saw", "axe", "pen"]
    lines = []
    for _ in range(3000):
        lines.append(f"the {draw.choice(animals)} eats grass and sleeps in its barn")
        lines.append(f"my {draw.choice(tools)} cuts wood or lies on that bench")
    base = train_bpe(["x"], vocab_size=260)
    words = extend(base, lines, add=300)
    relation = relate(base, words)
    space = static_embedding(base, words, relation, lines, StaticEmbeddingConfig(dim=16))
    place = {words.decode_bytes([i]): i for i in range(words.vocab_size)}
    vectors = {w: space.new[place[b" " + w.encode()]] for w in animals + tools}
    for kind, others in ((animals, tools), (tools, animals)):
        near = min(float(vectors[a] @ vectors[b]) for a in kind for b in kind)
        far = max(float(vectors[a] @ vectors[b]) for a in kind for b in others)
        assert near > 0.8 > 0.5 > far


def test_mutual_information_by_hand() -> None:
    rows, columns = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2])
    found = _ppmi(rows, columns, np.array([1.0, 3.0, 4.0, 8.0]), 3).to_dense().numpy()
    per_column = np.array([1.0, 7.0, 8.0]) ** 0.75
    share = per_column / per_column.sum()
    expected = np.zeros((3, 3))
    for row, column, count, total in ((0, 0, 1, 4), (0, 1, 3, 4), (1, 1, 4, 4), (2, 2, 8, 8)):
        expected[row, column] = max(0, np.log(count / total / share[column]))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_embedding_is_one_table(
    old: PipelineTokenizer, new: PipelineTokenizer, auxiliary: Auxiliary
) -> None:
    assert torch.equal(auxiliary.new[:500], auxiliary.old)
    norms = auxiliary.new.norm(dim=1)
    assert ((norms < 1e-9) | ((norms - 1).abs() < 1e-5)).all()
    assert (norms[500:650] > 0).float().mean() > 0.8 and norms[650] == 0
    torch.manual_seed(1)
    again = static_embedding(old, new, relate(old, new), FIELD, SMALL)
    assert torch.equal(again.new, auxiliary.new)


def test_counting_in_parts_is_counting_at_once(
    old: PipelineTokenizer, new: PipelineTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmworks.models.transplant import static_embedding as module

    at_once = static_embedding(old, new, relate(old, new), FIELD, SMALL)
    monkeypatch.setattr(module, "_AT_ONCE", 3000)
    parts = static_embedding(old, new, relate(old, new), FIELD, SMALL)
    torch.testing.assert_close(at_once.new @ at_once.new.T, parts.new @ parts.new.T)


def test_too_little_text(old: PipelineTokenizer, new: PipelineTokenizer) -> None:
    with pytest.raises(UserError, match="too short to compare tokens"):
        static_embedding(old, new, relate(old, new), ["one two"], SMALL)
    with pytest.raises(UserError, match=r"auxiliary.window = 0"):
        StaticEmbeddingConfig(window=0)


# The stage


@pytest.mark.parametrize("name", ["mean", "focus"])
def test_the_stage(
    name: str, old: PipelineTokenizer, new: PipelineTokenizer, tmp_path: Path
) -> None:
    model = tiny(500)
    save_model(model, tmp_path / "model", tokenizer=old)
    new.save(tmp_path / "new")
    (tmp_path / "field.txt").write_text("\n".join(FIELD))
    config = TransplantConfig(
        model=str(tmp_path / "model"),
        tokenizer=str(tmp_path / "new"),
        method=name,
        text=str(tmp_path / "field.txt"),
        pad_to_multiple_of=16,
    )
    made = transplant_stage(config, tmp_path / "out")
    assert made.kind == "model" and made.metrics["vocab_size"] == 656
    assert made.metrics["num_shared"] == 500 and made.metrics["num_new"] == 151
    assert made.metrics["without_counterpart"] == ["<|law|>"]
    loaded = load_model(made.path)
    text = ids(load_tokenizer(made.path), TEXTS[40][:300])
    auxiliary = None
    if name in NEED_AUXILIARY:
        field = read_texts(tmp_path / "field.txt")
        auxiliary = static_embedding(old, new, relate(old, new), field, config.auxiliary)
    changed = transplant(model, relate(old, new), name, auxiliary=auxiliary, pad_to_multiple_of=16)
    with torch.no_grad():
        torch.testing.assert_close(loaded(text), changed(text))


def test_transformers_loads_what_the_stage_makes(
    old: PipelineTokenizer, new: PipelineTokenizer, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    save_model(tiny(500, tied=False), tmp_path / "model", tokenizer=old)
    new.save(tmp_path / "new")
    config = TransplantConfig(model=str(tmp_path / "model"), tokenizer=str(tmp_path / "new"))
    made = transplant_stage(config, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(made.path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(made.path)
    text = tokenizer(TEXTS[40][:300], return_tensors="pt")["input_ids"]
    assert text.tolist() == ids(new, TEXTS[40][:300]).tolist() and int(text.max()) >= 500
    with torch.no_grad():
        torch.testing.assert_close(
            load_model(made.path)(text), theirs(text).logits, atol=1e-5, rtol=1e-5
        )


@pytest.mark.weights
def test_a_real_vocabulary_that_was_extended() -> None:
    real = load_tokenizer("smollm2-135m")
    longer = extend(real, FIELD, add=300)
    relation = relate(real, longer)
    assert relation.shared[:49152].tolist() == list(range(49152))
    assert relation.missing.tolist() == list(range(49152, longer.vocab_size))
    assert all(len(pieces) > 1 for pieces in relation.pieces)
    assert relation.plain.sum() == 49152 - len(real.special_tokens)


def test_the_stage_tells_before_it_loads(tmp_path: Path, old: PipelineTokenizer) -> None:
    old.save(tmp_path)
    here = str(tmp_path)
    with pytest.raises(UserError, match="unknown transplant_method 'fvt'"):
        transplant_stage(
            TransplantConfig(model=here, tokenizer=here, method="fvt"), tmp_path / "out"
        )

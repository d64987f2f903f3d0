"""Objectives of pre-training beside transformers': the same batch, the same loss."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.models.parity import randomised
from tests.training.test_text_objectives import FACTS, MASK, SENTINELS, VOCAB

from lmworks.models.config import (
    AttentionConfig,
    LayerNormConfig,
    LMHeadConfig,
    MLPConfig,
    ModelConfig,
)
from lmworks.models.generator_discriminator import GeneratorDiscriminator
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.training.batches import IGNORED, Batch
from lmworks.training.objectives.masked import MaskedLM
from lmworks.training.objectives.permutation import PermutationLM
from lmworks.training.objectives.prefix import PrefixLM
from lmworks.training.objectives.replaced_token import ReplacedBatch, ReplacedToken, originals
from lmworks.training.objectives.span_corruption import SpanCorruption, collapse
from lmworks.training.objectives.text import TokenFacts, facts_of
from lmworks.training.optimizers.base import OptimizerConfig
from lmworks.training.strategy import Compute, OneProcess
from lmworks.training.trainer import Trainer
from lmworks.training.trainer_config import LoopConfig

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def windows(seed: int = 0, rows: int = 4, length: int = 32) -> np.ndarray:
    """A noisy cycle with a separator now and then: learnable, not trivial."""
    random = np.random.default_rng([seed, 5])
    ids = (np.arange(length + 1) + random.integers(0, 38, (rows, 1))) % 38 + 2
    ids = np.where(random.random(ids.shape) < 0.1, random.integers(2, 40, ids.shape), ids)
    ids[random.random(ids.shape) < 0.04] = FACTS.separator
    return ids


def questions(objective: Any, seed: int = 0, facts: TokenFacts = FACTS) -> Any:
    return objective.corrupt(windows(seed), np.random.default_rng(seed), facts)


def ours_of(theirs: Any, folder: Path) -> Any:
    theirs.save_pretrained(folder)
    return load_model(folder)


def test_the_masked_loss_of_bert(tmp_path: Path) -> None:
    theirs = randomised(transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)))
    ours, batch = ours_of(theirs, tmp_path), questions(MaskedLM())
    loss = MaskedLM()(ours, batch)
    expected = theirs(input_ids=batch.input_ids, labels=batch.labels)
    assert loss.num_targets == 4 * round(0.15 * 32)
    assert loss.value.item() == pytest.approx(expected.loss.item(), abs=1e-6)
    right = expected.logits.argmax(-1) == batch.labels
    wanted = right[batch.labels != IGNORED].float().mean().item()
    assert loss.metrics["accuracy"] == pytest.approx(wanted)


def test_fifty_steps_of_bert(tmp_path: Path) -> None:
    """The same weights, the same batches, AdamW: the same 50 losses."""
    config = transformers.BertConfig(
        **SIZES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=None
    )  # theirs would learn nothing of the embedding of a padding token, which ours knows none of
    torch.manual_seed(0)
    theirs = transformers.BertForMaskedLM(config)
    ours, objective = ours_of(theirs, tmp_path / "theirs"), MaskedLM()
    (tmp_path / "work").mkdir()
    settings = OptimizerConfig(name="adamw", learning_rate=1e-3, weight_decay=0.0)
    history = Trainer(
        ours,
        objective,
        lambda step: questions(objective, step),
        LoopConfig(warmup_steps=1, schedule="linear", optimizer=settings),
        num_steps=50,
        work=tmp_path / "work",
    ).fit()
    optimizer = torch.optim.AdamW(
        theirs.parameters(), betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    losses = []
    for step in range(50):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / 50)
        batch = questions(objective, step)
        loss = theirs(input_ids=batch.input_ids, labels=batch.labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert history.loss == pytest.approx(losses, abs=1e-5)


def test_the_loss_of_t5(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=24,
        d_kv=6,
        d_ff=40,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=FACTS.separator,
        pad_token_id=FACTS.separator,
    )
    theirs = randomised(transformers.T5ForConditionalGeneration(config))
    ours, batch = ours_of(theirs, tmp_path), questions(SpanCorruption())
    loss = SpanCorruption()(ours, batch)
    expected = theirs(input_ids=batch.source_ids, labels=batch.labels).loss
    assert loss.value.item() == pytest.approx(expected.item(), abs=1e-6)


def electra(tmp_path: Path) -> tuple[Any, Any, GeneratorDiscriminator]:
    """Both models of theirs, with one embedding, and ours with their weights."""
    narrow = SIZES | {"hidden_size": 16, "embedding_size": 24, "intermediate_size": 20}
    generator = randomised(
        transformers.ElectraForMaskedLM(transformers.ElectraConfig(**narrow)), seed=1
    )
    discriminator = randomised(
        transformers.ElectraForPreTraining(
            transformers.ElectraConfig(**SIZES | {"embedding_size": 24})
        )
    )
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        table = getattr(discriminator.electra.embeddings, name)
        getattr(generator.electra.embeddings, name).weight.data.copy_(table.weight)
    apart = [
        ours_of(theirs, tmp_path / name)
        for name, theirs in (("generator", generator), ("discriminator", discriminator))
    ]
    ours = GeneratorDiscriminator(apart[0].config, apart[1].config)
    ours.generator.load_state_dict(apart[0].state_dict())
    ours.discriminator.load_state_dict(apart[1].state_dict())
    return generator, discriminator, ours.eval()


def test_both_losses_of_electra_on_the_same_text(tmp_path: Path) -> None:
    generator, discriminator, ours = electra(tmp_path)
    objective = ReplacedToken()
    batch = questions(objective)
    loss = objective(ours, batch)
    hidden = ours.generator.hidden_states(batch.input_ids)
    ids = objective.filled(ours, batch, hidden)
    filled = generator(input_ids=batch.input_ids, labels=batch.labels).loss
    labels = (ids != originals(batch)).long()
    judged = discriminator(input_ids=ids, labels=labels).loss
    assert 0 < labels.sum() <= (batch.labels != IGNORED).sum()
    assert loss.metrics["generator"] == pytest.approx(filled.item(), abs=1e-6)
    assert loss.metrics["discriminator"] == pytest.approx(judged.item(), abs=1e-6)
    assert loss.value.item() == pytest.approx((filled + 50 * judged).item(), abs=1e-5)
    loss.value.backward()  # both losses reach the shared table, none through the draw
    (filled + 50 * judged).backward()
    theirs = [m.electra.embeddings.word_embeddings.weight.grad for m in (generator, discriminator)]
    mine = ours.discriminator.embed_tokens.weight.grad
    # Theirs learn nothing of token 0 where it is read, taking it for padding.
    assert (mine - theirs[0] - theirs[1])[1:].abs().max() < 1e-4 * mine.abs().max()


def test_what_is_drawn_follows_the_generator_and_the_batch_alone(tmp_path: Path) -> None:
    _, _, ours = electra(tmp_path)
    objective = ReplacedToken(temperature=0.7)
    ids = torch.full((1, 4), MASK)
    labels = torch.tensor([[IGNORED, 5, IGNORED, IGNORED]])
    hidden = ours.generator.hidden_states(ids)
    shares = (ours.generator.logits(hidden[0, 1]) / 0.7).softmax(-1)
    counts = torch.zeros(VOCAB)
    for noise in torch.linspace(0, 1, 400)[:-1]:
        batch = ReplacedBatch(input_ids=ids, labels=labels, noise=noise.expand(1, 4))
        counts[objective.filled(ours, batch, hidden)[0, 1]] += 1
    assert (counts / 399 - shares).abs().max() < 2 / 399  # even noise, so no luck is in it


@pytest.mark.parametrize("size", [1, 3])
def test_replaced_tokens_do_not_depend_on_micro_batches(tmp_path: Path, size: int) -> None:
    _, _, ours = electra(tmp_path)
    batch = questions(ReplacedToken())
    found = []
    for rows in (0, size):
        ours.zero_grad(set_to_none=True)
        compute = Compute(micro_batch_size=rows)
        figures = OneProcess().gradients(ours, ReplacedToken(), batch, compute)
        found.append((figures.loss, [p.grad.clone() for p in ours.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(one, other, atol=1e-4 * float(one.abs().max() + 1e-3))


def test_the_prefix_loss_through_a_mask_made_by_hand(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**SIZES, attn_implementation="eager")
    theirs = randomised(transformers.LlamaForCausalLM(config))
    ours, batch = ours_of(theirs, tmp_path), questions(PrefixLM())
    added = torch.zeros(4, 1, 32, 32)
    for row in range(4):
        prefix = int((batch.labels[row] == IGNORED).sum()) + 1
        for t in range(32):
            for s in range(32):
                if s > t and s >= prefix:
                    added[row, 0, t, s] = torch.finfo(torch.float32).min
    logits = theirs(input_ids=batch.input_ids, attention_mask=added).logits
    expected = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED)
    assert PrefixLM()(ours, batch).value.item() == pytest.approx(expected.item(), abs=1e-6)


def xlnet() -> tuple[Any, Model]:
    """XLNet without its relative positions, and ours: what is left is its two streams."""
    config = transformers.XLNetConfig(
        vocab_size=VOCAB, d_model=24, n_layer=2, n_head=4, d_inner=40, dropout=0.0
    )
    theirs = randomised(transformers.XLNetLMHeadModel(config))
    core = theirs.transformer
    ours = Model(
        ModelConfig(
            vocab_size=VOCAB,
            hidden_size=24,
            layers=ModelConfig.uniform(
                vocab_size=VOCAB,
                hidden_size=24,
                num_hidden_layers=2,
                mixer=AttentionConfig(
                    num_attention_heads=4,
                    num_key_value_heads=4,
                    head_dim=6,
                    rope=None,
                    bias="q",
                ),
                feed_forward=MLPConfig(
                    intermediate_size=40, activation="gelu", gated=False, bias=True
                ),
                norm=LayerNormConfig(eps=config.layer_norm_eps),
                placement="post",
            ).layers,
            norm=None,
            head=LMHeadConfig(bias=True),
            tie_word_embeddings=True,
        )
    )
    with torch.no_grad():
        core.word_embedding.weight[MASK] = core.mask_emb[0, 0]
        state = {
            "embed_tokens.weight": core.word_embedding.weight,
            "head.bias": theirs.lm_loss.bias,
        }
        for i, layer in enumerate(core.layer):
            attention, feed_forward = layer.rel_attn, layer.ff
            attention.r.zero_()
            name = f"layers.{i}."
            for part in "qkv":
                state[f"{name}mixer.{part}_proj.weight"] = getattr(attention, part).flatten(1).T
            state[f"{name}mixer.q_proj.bias"] = attention.r_w_bias.flatten()
            state[f"{name}mixer.o_proj.weight"] = attention.o.flatten(1)
            attention.r_r_bias.zero_()
            for own, other in (
                ("mixer_norm", attention.layer_norm),
                ("feed_forward_norm", feed_forward.layer_norm),
                ("feed_forward.up_proj", feed_forward.layer_1),
                ("feed_forward.down_proj", feed_forward.layer_2),
            ):
                state[f"{name}{own}.weight"] = other.weight
                state[f"{name}{own}.bias"] = other.bias
        ours.load_state_dict(state)
    return theirs, ours.eval()


def test_one_forward_says_what_xlnets_two_streams_say() -> None:
    theirs, ours = xlnet()
    batch: Batch = questions(PermutationLM())
    length = 32
    asked = batch.input_ids.shape[1] - length
    visible = batch.inputs["visible"]
    places = batch.inputs["positions"][:, length:]
    # Theirs: who may not look at whom among the tokens (a token may always look at itself), with
    # the row of a token that is asked for being that of its question.
    hidden = ~visible[:, :length, :length]
    for row in range(4):
        hidden[row, places[row]] = ~visible[row, length:, :length]
    answers = theirs(
        input_ids=batch.input_ids[:, :length],
        perm_mask=hidden.float(),
        target_mapping=F.one_hot(places, length).float(),
    ).logits
    labels = batch.labels[:, length:]
    assert (labels != IGNORED).all()
    with torch.no_grad():
        mine = ours(batch.input_ids, **batch.inputs)[:, length:]
    assert mine.std() > 0.05
    assert asked == round(length / 6)
    assert (mine - answers).abs().max() < 1e-4
    loss = PermutationLM()(ours, batch)
    expected = F.cross_entropy(answers.flatten(0, 1), labels.flatten())
    assert loss.value.item() == pytest.approx(expected.item(), abs=1e-5)


WORDS = """the cat ##s sat on mat ##ting un ##believ ##able dog ran far ##ther , . ' s"""


def bert_tokenizer(tmp_path: Path) -> Any:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split()]
    vocabulary = {name: i for i, name in enumerate(names)}
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(vocabulary), encoding="utf-8")
    return transformers.BertTokenizerFast(vocab=str(path))


def test_what_is_masked_as_often_as_by_the_collator_of_transformers(tmp_path: Path) -> None:
    theirs = bert_tokenizer(tmp_path)
    collator = transformers.DataCollatorForLanguageModeling(theirs, mlm=True, seed=0)
    special = np.zeros(len(theirs), dtype=bool)
    special[:5] = True
    random = np.random.default_rng(0)
    ids = random.integers(5, len(theirs), (300, 101))
    ids[:, 0], ids[:, -1] = theirs.cls_token_id, theirs.sep_token_id
    facts = TokenFacts(
        special=special,
        separator=theirs.sep_token_id,
        mask_id=theirs.mask_token_id,
        word_begins=special,
        word_ends=special,
    )
    mine = MaskedLM().corrupt(ids, random, facts)
    text = torch.from_numpy(ids[:, :-1])
    other = collator([{"input_ids": row} for row in ids[:, :-1].tolist()])
    rates = [
        _rates(text, seen, labels, theirs.mask_token_id)
        for seen, labels in (
            (mine.input_ids, mine.labels),
            (other["input_ids"], other["labels"]),
        )
    ]
    for rate, collated in zip(*rates, strict=True):
        assert rate == pytest.approx(collated, abs=0.025)


def _rates(
    text: torch.Tensor, seen: torch.Tensor, labels: torch.Tensor, mask: int
) -> tuple[float, ...]:
    """Shares: asked for; of those masked, left as they are; of special tokens asked for."""
    chosen = labels != IGNORED
    return (
        chosen.float().mean().item(),
        (seen[chosen] == mask).float().mean().item(),
        (seen[chosen] == text[chosen]).float().mean().item(),
        chosen[:, 0].float().mean().item(),
    )


def test_words_are_those_of_transformers(tmp_path: Path) -> None:
    theirs = bert_tokenizer(tmp_path)
    folder = tmp_path / "tokenizer"
    theirs.save_pretrained(folder)
    facts = _facts_of_bert(folder)
    text = "the cats sat , on matting . unbelievable dogs ran farther, cat's mat."
    encoded = theirs(text, add_special_tokens=False)
    wanted = encoded.word_ids(0)
    ids = np.array([encoded["input_ids"]])
    assert facts.words(ids)[0].tolist() == wanted


def _facts_of_bert(folder: Path) -> TokenFacts:
    """BERT parts documents with [SEP], which its tokenizer calls neither BOS nor EOS."""
    vocabulary = dataclasses.replace(load_tokenizer(folder).vocabulary, eos_token="[SEP]")
    return facts_of(PipelineTokenizer(vocabulary))


def test_whole_words_are_taken_out_whole(tmp_path: Path) -> None:
    theirs = bert_tokenizer(tmp_path)
    theirs.save_pretrained(tmp_path / "tokenizer")
    facts = _facts_of_bert(tmp_path / "tokenizer")
    ids = np.array(
        [theirs("the cats unbelievable mat " * 20, add_special_tokens=False)["input_ids"]]
    )
    random = np.random.default_rng(0)
    masked = [MaskedLM(whole_words=True).corrupt(ids, random, facts) for _ in range(50)]
    words = torch.from_numpy(facts.words(ids[:, :-1]))
    theirs_too = transformers.DataCollatorForLanguageModeling._whole_word_mask
    for batch in masked:
        chosen = batch.labels != IGNORED
        assert torch.equal(chosen, torch.from_numpy(theirs_too(words.numpy(), chosen.numpy())))
    share = np.mean([(b.labels != IGNORED).float().mean().item() for b in masked])
    assert share == pytest.approx(0.15, abs=0.01)


def test_sentinels_are_those_of_t5() -> None:
    """As T5's own code has it: sentinels in order, the answer ends where the text does."""
    taken = np.array([[False, True, True, False, False, True]])
    ids, two = np.array([[10, 11, 12, 13, 14, 15]]), np.array(SENTINELS[:2])
    assert collapse(ids, taken, two).tolist() == [[10, 40, 13, 14, 41]]
    assert collapse(ids, ~taken, two).tolist() == [[40, 11, 12, 41, 15]]

"""Answer masks: hand-labelled stretches under real templates, and what must be refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.training import templates as t

from lmworks.core.errors import UserError
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.training.answer_masks import mask_answers
from lmworks.training.mask_config import MaskConfig

LABELLED: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("labelled_answers.json").read_text()
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '<|end|>\\n\\n' + m.content | trim }}"
    "{{ '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\\n\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ '<|pad|>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + "
    "' [/INST]' }}{% else %}{{ ' ' + m.content + '<|endoftext|>' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("name", sorted(LABELLED))
def test_hand_labelled_stretches(name: str) -> None:
    tokenizer = t.over((t.folder() / f"{name}.jinja").read_text())
    for kind, messages in t.CONVERSATIONS.items():
        given = t.in_parts(messages) if name in t.IN_PARTS else messages
        expected = LABELLED[name][kind]
        try:
            masked = mask_answers(tokenizer, given)
        except UserError as error:
            assert isinstance(expected, str) and expected in str(error), kind
            continue
        assert t.stretches(tokenizer, masked) == expected, kind
        assert masked.is_target.any() and masked.ends
        if "strftime_now" not in (tokenizer.chat_template or ""):
            whole = tokenizer.encode_chat(given, add_generation_prompt=False)
            assert masked.ids.tolist()[: len(whole)] == whole  # an EOS may have been added


_OPENING = "it counts the opening of the turn, or a part of it, which the prompt has"
_THOUGHTS = "it writes thoughts into answers of the past, and counts their opening"
# Where TRL's template for training says otherwise, and why.
OTHERWISE = {
    "glm4moe": "it ends the last answer with the next turn's token, which the template does not",
    "phi3": "it counts the end of the text, which no answer has when another turn follows",
    "phi3_5": "the same",
    "gptoss": "it learns answers of the past, whose end the template has rewritten",
    **dict.fromkeys(["deepseekv3", "deepseek_r1_distill", "muse_glimmer", "qwen2_5"], _OPENING),
    **dict.fromkeys(
        [f"nemotron_3_{n}" for n in ("5_lightning", "nano", "super", "ultra")], _OPENING
    ),
    **dict.fromkeys(["qwen3", "qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "qwen3_8"], _THOUGHTS),
}


def _training_templates() -> list[str]:
    return [name for name in sorted(LABELLED) if name not in OTHERWISE]


@pytest.mark.parametrize("name", _training_templates())
def test_as_templates_with_generation_tags(name: str) -> None:
    tagged = t.folder() / f"{name}_training.jinja"
    if not tagged.is_file():
        pytest.skip("no such template in TRL")
    messages = t.in_parts(t.TWO) if name in t.IN_PARTS else t.TWO
    plain, theirs = t.over((t.folder() / f"{name}.jinja").read_text()), t.over(tagged.read_text())
    ours = t.stretches(plain, mask_answers(plain, messages))
    said = t.stretches(theirs, mask_answers(theirs, messages))
    assert [text.rstrip() for text in said] == [text.rstrip() for text in ours]


_TEXTS = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(
            [
                "<|im_end|>",
                "<|im_start|>assistant\n",
                "<|eot|>",
                "[/INST]",
                " ",
                "\n",
                "<|",
                "é",
                "\U000f0000",
            ]
        ),
    ),
    min_size=1,
    max_size=5,
).map("".join)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHATML, lambda text: text + "<|im_end|>"),
        (LLAMA, lambda text: text.strip() + "<|eot|>"),
        (MISTRAL, lambda text: " " + text + "<|endoftext|>"),
    ],
)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(_TEXTS.filter(lambda text: text.strip()), min_size=4, max_size=4))
def test_whatever_is_said(template: str, said: Any, texts: list[str]) -> None:
    tokenizer = t.over(template)
    roles = ["user", "assistant"] * 2
    messages = [t.turn(role, text) for role, text in zip(roles, texts, strict=True)]
    masked = mask_answers(tokenizer, messages)
    assert not masked.left_out
    # Tokens that lie across a border are whole characters of the template's: none here.
    assert masked.num_straddling == 0
    assert t.stretches(tokenizer, masked) == [said(texts[1]), said(texts[3])]


def test_a_token_across_the_border_is_counted_and_not_learnt() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ 'Q: ' + m.content + '\\nA:' }}"
        "{% else %}{{ m.content + '<|endoftext|>' }}{% endif %}{% endfor %}"
    )
    tokenizer = t.over(template)
    merged = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"It")
    messages = [t.turn("user", "2 + 2?"), t.turn("assistant", "t is 4.")]
    spliced = PipelineTokenizer(
        dataclasses.replace(tokenizer.vocabulary, chat_template=template.replace("A:", "A: I"))
    )
    masked = mask_answers(spliced, messages)
    assert merged in masked.ids.tolist() or masked.num_straddling
    assert masked.num_straddling == 1
    assert t.stretches(spliced, masked) == [" is 4.<|endoftext|>"]


def test_policies() -> None:
    tokenizer = t.over((t.folder() / "qwen3_8.jinja").read_text())

    def learnt(messages: Any, **settings: Any) -> list[str]:
        masked = mask_answers(tokenizer, messages, config=MaskConfig(**settings))
        return t.stretches(tokenizer, masked)

    assert learnt(t.THOUGHT, loss_on="last") == ["Add them.\n</think>\n\nIt is 4.<|im_end|>"]
    assert learnt(t.THOUGHT, loss_on="last", thoughts=False) == ["\n</think>\n\nIt is 4.<|im_end|>"]
    assert learnt(t.CALL, tool_calls=False) == ["\n</think>\n\nSunny.<|im_end|>"]
    whole = tokenizer.decode(tokenizer.encode_chat(t.TWO, add_generation_prompt=False))
    assert learnt(t.TWO, loss_on="everything") == [whole]
    unwanted = [t.TWO[0], {**t.TWO[1], "weight": 0}, *t.TWO[2:]]
    assert learnt(unwanted) == learnt(t.TWO, loss_on="last")


def test_generation_tags_are_the_templates_word() -> None:
    template = (
        "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}!{% endgeneration %}{% else %}{{ m.content }}{% endif %};{% endfor %}"
    )
    tokenizer = t.over(template)
    assert t.stretches(tokenizer, mask_answers(tokenizer, t.TWO)) == ["Hello.!", "It is 4.!"]
    last = mask_answers(tokenizer, t.TWO, config=MaskConfig(loss_on="last"))
    assert t.stretches(tokenizer, last) == ["It is 4.!"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", "no chat template"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "hides"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "hides"),
        ("always the same", "can't|no answer|no token|hides"),
        ("{% generation %}{% endgeneration %}{{ messages[0].content }}", "hold nothing"),
        ("{{ raise_exception('no') }}", "refuses: no"),
    ],
)
def test_refused_with_place_and_reason(template: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        mask_answers(t.over(template), t.TWO, where="chats.jsonl, line 7")
    assert str(caught.value).startswith("chats.jsonl, line 7: ")


def test_nothing_to_learn_is_refused() -> None:
    tokenizer = t.over(CHATML)
    with pytest.raises(UserError, match="no assistant message"):
        mask_answers(tokenizer, t.TWO[:1])
    with pytest.raises(UserError, match="every answer is left out"):
        mask_answers(tokenizer, [t.TWO[0], {**t.TWO[1], "weight": 0}])


def test_questions_behind_the_last_answer_are_left_away() -> None:
    tokenizer = t.over(CHATML)
    left, right = (mask_answers(tokenizer, m) for m in (t.TWO[:2], t.TWO[:3]))
    assert np.array_equal(left.ids, right.ids) and np.array_equal(left.is_target, right.is_target)


def test_the_day_does_not_change_what_is_learnt() -> None:
    template = "{{ strftime_now('%d %b %Y') }}" + CHATML
    tokenizer = t.over(template)
    text = tokenizer.decode(mask_answers(tokenizer, t.TWO).ids.tolist())
    assert text.startswith("26 Jul 2024")
    with pytest.raises(UserError, match="write a day as YYYY-MM-DD"):
        mask_answers(tokenizer, t.TWO, config=MaskConfig(date="tomorrow"))


@pytest.mark.weights
def test_smollm2_learns_answers_and_their_end() -> None:
    from lmworks.core.references import resolve
    from lmworks.tokenizers.load import load_tokenizer

    path = resolve("smollm2-135m").path
    assert path is not None
    tokenizer = load_tokenizer(path)
    masked = mask_answers(tokenizer, t.TWO)
    assert t.stretches(tokenizer, masked) == ["Hello.<|im_end|>", "It is 4.<|im_end|>"]

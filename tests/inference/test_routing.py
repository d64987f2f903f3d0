"""A router answers with the member that its rule names, whoever the members are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lmworks.core.errors import UserError
from lmworks.inference.chat import load_chat
from lmworks.inference.remote import RemoteChat
from lmworks.inference.routing import RoutedChat, bits_per_byte
from lmworks.inference.scripted import ScriptedChat
from lmworks.models.ensemble_spec import EnsembleSpec, Member, read_ensemble
from lmworks.models.save import save_model
from lmworks.models.size import model_size


def router() -> RoutedChat:
    members = (
        Member(model="code", when=r"def |\bimport\b"),
        Member(model="law", when="(?i)paragraph"),
        Member(model="rest"),
    )
    chats = [ScriptedChat([name]) for name in ("code", "law", "rest")]
    return RoutedChat(chats, EnsembleSpec(models=members, combine="route"), "router")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("import this", "code"),
        ("an important Paragraph", "law"),
        ("def f(): # paragraph", "code"),
        ("good day", "rest"),
        ("", "rest"),
    ],
)
def test_the_first_expression_that_is_found_decides(text: str, answer: str) -> None:
    chat = router()
    asked = [
        {"role": "user", "content": "import this"},
        {"role": "assistant", "content": "paragraph"},
        {"role": "user", "content": text},
    ]
    assert chat.complete(asked).text == answer
    assert "".join(delta.text for delta in chat.stream(asked)) == answer
    assert chat.complete_text(text).text == answer
    assert chat.routed.total() == 3 and len(chat.routed) == 1
    with pytest.raises(UserError, match="give text, not token ids"):
        chat.complete_text([1, 2])


def test_tokens_are_counted_by_whoever_would_answer() -> None:
    chat = router()
    chat.members[1] = RemoteChat("http://localhost:1/v1", "law")
    asked = [{"role": "user", "content": "import this"}]
    assert chat.count_tokens(asked) == chat.members[0].count_tokens(asked)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="'law' can't be counted: it is not local"):
        chat.count_tokens([{"role": "user", "content": "paragraph 1"}])
    assert not chat.routed
    chat.close()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{combine: route, models: [a, b]}", "each model but the last needs `when`"),
        ("{combine: route, models: [{model: a, when: x}, {model: b, when: y}]}", "the last takes"),
        ("{combine: route, models: [{model: a, when: '('}, b]}", "is no expression"),
        ("{models: [{model: a, when: x}, b]}", "`when` is for `combine: route`"),
    ],
)
def test_a_file_that_tells_no_router_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        read_ensemble(tmp_path / "e.yaml")
    assert told in str(error.value)


def test_who_reads_it_most_cheaply_answers(tiny_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    import copy

    for name, shift in (("one", 0), ("two", 40)):
        model = copy.deepcopy(tiny_model)
        with torch.no_grad():  # the head of the second expects other letters
            model.lm_head.weight.copy_(model.lm_head.weight.roll(shift, 0))
        save_model(model, tmp_path / name)
        tokenizer.save(tmp_path / name)
    (tmp_path / "both.yaml").write_text("{combine: perplexity, models: [one, two]}")
    chat: Any = load_chat(tmp_path / "both.yaml", max_batch=1)
    seen = set()
    for text in ("abcabc", "zzzzz", "Hello, world", "\u00e4\u00f6\u00fc", "12 34", "((((", "QQ"):
        costs = [bits_per_byte(member, text) for member in chat.members]
        assert chat.choose(text) == costs.index(min(costs))
        seen.add(chat.choose(text))
    assert seen == {0, 1}
    assert chat.complete_text("abc", max_tokens=2, temperature=0).completion_tokens >= 1
    sizes = [model_size(tmp_path / name).weight_bytes for name in ("one", "two")]
    assert model_size(tmp_path / "both.yaml").weight_bytes == sum(sizes)
    chat.close()
    (tmp_path / "self.yaml").write_text("{combine: perplexity, models: [one, self.yaml]}")
    for act in (load_chat, model_size):
        with pytest.raises(UserError, match=r"self\.yaml is a router"):
            act(tmp_path / "self.yaml")


@pytest.mark.parametrize("combine", ["perplexity", "logprobs"])
def test_a_server_holds_it_as_one_model(
    tiny_model: Any, tokenizer: Any, tmp_path: Path, combine: str
) -> None:
    from lmworks.serving.loaded_models import LoadedModel, Plan
    from lmworks.serving.model_specs import ModelSpec

    for name in ("one", "two"):
        save_model(tiny_model, tmp_path / name)
        tokenizer.save(tmp_path / name)
    (tmp_path / "both.yaml").write_text(f"{{combine: {combine}, models: [one, two]}}")
    spec = ModelSpec(model=str(tmp_path / "both.yaml"), max_batch=2)
    loaded, plan = LoadedModel("both", spec), Plan(spec)
    try:
        assert plan.kind == "chat" and plan.num_bytes == loaded.num_bytes > 0
        assert loaded.chat.complete_text("abc", max_tokens=3, temperature=0).completion_tokens
        with pytest.raises(UserError, match="makes no vectors"):
            loaded.embedder()
        with pytest.raises(UserError, match="no model that adapters can be put on"):
            _ = loaded.adapters
    finally:
        loaded.chat.close()  # type: ignore[attr-defined]

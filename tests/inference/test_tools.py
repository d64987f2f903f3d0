from __future__ import annotations

import dataclasses
import json
import random
import time

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.inference.base import collect
from lmworks.inference.engine import Engine
from lmworks.inference.grammar import Grammar
from lmworks.inference.local import LocalChat
from lmworks.inference.sampling import InvalidParameter
from lmworks.inference.scripted import ScriptedChat
from lmworks.inference.settings import Settings
from lmworks.inference.tool_formats import FORMATS, PLAIN, format_of
from lmworks.inference.tool_grammar import tool_grammar
from lmworks.inference.tool_parser import ToolCallParser
from lmworks.inference.tools import ToolUse, for_template
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.vocabulary import AddedToken

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 9},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"type": "string", "enum": ["C", "F"]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
ADD = {
    "type": "object",
    "properties": {"numbers": {"$ref": "#/$defs/list"}},
    "required": ["numbers"],
    "$defs": {
        "list": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 99},
            "maxItems": 3,
        }
    },
}


def function(name, parameters=None, **more):
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


TOOLS = [function("weather", WEATHER, description="Weather to come."), function("add", ADD)]
ASK = [{"role": "user", "content": "What is it?"}]


def use_of(choice="auto", parallel=None, tools=TOOLS):
    use = ToolUse.of(tools, choice, parallel)
    assert use
    return use


def parsed(text, cuts, use, form):
    parser = ToolCallParser(use, form)
    pieces, at = [], 0
    for cut in [*sorted(cuts), len(text)]:
        pieces += parser.push(text[at:cut])
        at = cut
    pieces += parser.finish()
    said = "".join(piece for piece in pieces if isinstance(piece, str))
    calls: dict[int, list] = {}
    for piece in pieces:
        if not isinstance(piece, str):
            call = calls.setdefault(piece.index, ["", "", ""])
            call[0] += piece.name
            call[1] += piece.arguments
            call[2] += piece.problem
    return said, list(calls.values())


W = '{"city": "Ulm \\"}<{[", "days": 2}'
FOUND = ["weather", W, ""]
SUM = ["add", '{"numbers": [1, {}]}', "arguments['numbers'][1]: {} is not of type 'integer'"]
WRITTEN = {
    "hermes": f'Let me see.\n<tool_call>\n{{"name": "weather", "arguments": {W}}}\n</tool_call>\n'
    '<tool_call>\n{"arguments": {"numbers": [1, {}]}, "name": "add"}\n</tool_call>',
    "json": f'Let me see. <tool_call>{{"name": "weather", "arguments": {W}}}</tool_call>'
    '<tool_call>{"name": "add", "arguments": {"numbers": [1, {}]}}</tool_call>',
    "mistral": f'Let me see.[TOOL_CALLS][{{"name": "weather", "arguments": {W}}}, '
    '{"name": "add", "arguments": {"numbers": [1, {}]}}]',
    "mistral_named": f"Let me see.[TOOL_CALLS]weather[ARGS]{W}"
    '[TOOL_CALLS]add[ARGS]{"numbers": [1, {}]}',
    "llama3": f'Let me see.<|python_tag|>{{"name": "weather", "parameters": {W}}}; '
    '{"name": "add", "parameters": {"numbers": [1, {}]}}',
    "command_r": "Let me see.<|START_ACTION|>[\n"
    f'    {{"tool_call_id": "0", "tool_name": "weather", "parameters": {W}}},\n'
    '    {"tool_name": "add", "parameters": {"numbers": [1, {}]}}\n]<|END_ACTION|>',
    "internlm2": f"Let me see.<|action_start|><|plugin|>\n"
    f'{{"name": "weather", "parameters": {W}}}<|action_end|>'
    '<|action_start|><|plugin|>\n{"name": "add", "parameters": {"numbers": [1, {}]}}',
    "phi4": f'Let me see.<|tool_call|>[{{"name": "weather", "arguments": {W}}}, '
    '{"name": "add", "arguments": {"numbers": [1, {}]}}]<|/tool_call|>',
    "granite": f'Let me see.<|tool_call|>[{{"name": "weather", "arguments": {W}}},'
    '{"name": "add", "arguments": {"numbers": [1, {}]}}]',
    "deepseek": f"Let me see.<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{W}"
    "\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
    '{"numbers": [1, {}]}\n```<｜tool▁call▁end｜>',
    "qwen3_coder": "Let me see.\n<tool_call>\n<function=weather>\n<parameter=city>\n"
    'Ulm "}<{[\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>\n'
    "<tool_call>\n<function=add>\n<parameter=numbers>\n[1, {}]\n</parameter>\n</function>\n"
    "</tool_call>",
}


def test_every_family_is_written_out_here():
    assert set(WRITTEN) == set(FORMATS)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), family=st.sampled_from(sorted(WRITTEN)))
def test_calls_are_read_wherever_the_text_is_cut(data, family):
    text = WRITTEN[family]
    cuts = data.draw(st.sets(st.integers(0, len(text)), max_size=len(text)))
    said, calls = parsed(text, cuts, use_of(), FORMATS[family])
    assert said == "Let me see."
    assert calls == [FOUND, SUM]


@pytest.mark.parametrize("family", sorted(WRITTEN))
def test_and_one_character_at_a_time(family):
    text = WRITTEN[family]
    said, calls = parsed(text, range(len(text)), use_of(), FORMATS[family])
    assert (said, calls) == ("Let me see.", [FOUND, SUM])


MARKED = [mark for form in FORMATS.values() for mark in (form.begin, form.end) if mark]
SCRAPS = [*MARKED, "{", "}", "[", "]", '"', "\\", "\n", " ", ",", ";", "<function=weather>"]
SCRAPS += ['{"name": "weather", "arguments": ', W, "text", "</function>", "[ARGS]", "weather"]


@settings(max_examples=300, deadline=None)
@given(
    scraps=st.lists(st.sampled_from(SCRAPS), max_size=14),
    data=st.data(),
    family=st.sampled_from(sorted(FORMATS)),
    parallel=st.booleans(),
)
def test_nonsense_is_read_the_same_however_it_is_cut(scraps, data, family, parallel):
    text = "".join(scraps)
    use, form = use_of(parallel=parallel), FORMATS[family]
    cuts = data.draw(st.sets(st.integers(0, len(text)), max_size=8))
    assert parsed(text, cuts, use, form) == parsed(text, (), use, form)


@pytest.mark.parametrize(
    "text",
    [
        "Nothing to call. <tool_call is not a mark",
        '{"name": "nobody", "arguments": {}}',
        '{"city": "Ulm"}',
        "[1, 2]",
        "<tool_call>\nweather in Ulm\n</tool_call>",
        '<tool_call>{"city": "Ulm"}</tool_call>',
        '<tool_call>{"name": "weather"',
        "",
        "  \n",
        '{"name": "weather", "arguments": [',
    ],
)
def test_what_is_no_call_stays_text(text):
    assert parsed(text, range(0, len(text), 3), use_of(), PLAIN) == (text, [])


def test_bare_objects_and_arguments_as_text():
    for text in (
        f'{{"name": "weather", "arguments": {W}}}',
        f'[{{"name": "weather", "parameters": {W}}}]',
        json.dumps({"name": "weather", "arguments": W}),
        f'\n{{"type": "function", "function": {{"name": "weather", "arguments": {W}}}}}',
    ):
        said, [call] = parsed(text, range(0, len(text), 5), use_of(), PLAIN)
        assert said == ""
        assert call[0] == "weather" and json.loads(call[1]) == json.loads(W) and not call[2]


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("wether", "{}", "did you mean 'weather'"),
        ("weather", '{"city": "Ulm"}', "'days' is missing"),
        ("weather", '{"city": "Ulm", "days": 99}', "99 is greater than the maximum"),
        ("weather", '{"city": "Ulm", "days": 1, "x": 1}', "'x' was unexpected"),
        ("weather", '{"city": }', "are no JSON"),
        ("weather", '{"city": "Ulm"', "in the middle"),
    ],
)
def test_a_bad_call_is_told(name, arguments, problem):
    text = f'<tool_call>{{"name": "{name}", "arguments": {arguments}'
    text += "" if problem == "in the middle" else "}</tool_call>"
    _, [call] = parsed(text, (), use_of(), PLAIN)
    assert call[:2] == [name, arguments]
    assert problem in call[2]


def test_schemas_of_strangers_fetch_nothing_and_take_no_time(monkeypatch):
    import urllib.request

    monkeypatch.setattr(urllib.request, "urlopen", None)  # would fail if it were called
    [tool] = use_of(tools=[function("f", {"$ref": "http://127.0.0.1:9/schema"})]).tools
    assert tool.problem({}) == ""
    slow = {"properties": {"x": {"type": "string", "pattern": "^(a+)+$"}}}
    [tool] = use_of(tools=[function("f", slow)]).tools
    began = time.monotonic()
    tool.problem({"x": "a" * 40 + "!"})
    assert time.monotonic() - began < 5
    assert "does not match" in tool.problem({"x": "b"}) and tool.problem({"x": "aa"}) == ""
    monkeypatch.setattr("lmworks.inference.tools._PATTERN_TIMEOUT_S", 1e-9)
    assert tool.problem({"x": "b" * 10_000}) == ""  # it could not be told in the time
    [tool] = use_of(tools=[function("f", {"patternProperties": {"(a+)+$": False}})]).tools
    assert tool.problem({"a" * 40 + "!": 1}) == ""


def test_one_call_where_one_is_wanted():
    said, calls = parsed(WRITTEN["hermes"], (), use_of(parallel=False), FORMATS["hermes"])
    assert (said, calls) == ("Let me see.", [FOUND])


# --- held to the form ---

SPECIAL = ("[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|START_ACTION|>", "<|END_ACTION|>")


@pytest.fixture(scope="module")
def marked(tokenizer):
    """The byte tokenizer with the marks of some families as special tokens."""
    vocabulary = tokenizer.vocabulary
    added = [
        AddedToken(id=260 + i, text=text, in_vocabulary=False) for i, text in enumerate(SPECIAL)
    ]
    return PipelineTokenizer(
        dataclasses.replace(vocabulary, added_tokens=(*vocabulary.added_tokens, *added))
    )


@pytest.fixture(scope="module")
def compiler(marked):
    pytest.importorskip("llguidance")
    from lmworks.inference.grammar_tokens import GrammarCompiler

    return GrammarCompiler(marked, [2], marked.vocab_size)


def walked(compiler, grammar, seed, marked):
    """A random path's text with the special tokens in it."""
    rng = random.Random(seed)
    state, decoder, text = compiler.start(grammar), None, ""
    decoder = state.stream_decoder()
    texts = {i: t for t, i in marked.special_tokens.items()}
    closing = [i for i, t in enumerate(compiler.tokens.texts) if t and t in b'"}]\n<']
    for step in range(3000):
        if state.finished:
            break
        allowed = state.allowed_mask().nonzero()[0].tolist()
        near = [2] if 2 in allowed else [i for i in closing if i in allowed]
        token_id = rng.choice(near if near and step > 60 else allowed)
        if token_id == 2:
            break
        state.accept(token_id)
        text += decoder.push(token_id) + texts.get(token_id, "")
    else:
        raise AssertionError(text[:300])
    return text


@pytest.mark.parametrize("family", sorted(FORMATS))
@pytest.mark.parametrize("choice", ["required", "weather"])
def test_a_forced_answer_is_nothing_but_good_calls(compiler, marked, family, choice):
    form = FORMATS[family]
    named = choice if choice == "required" else {"type": "function", "function": {"name": choice}}
    use = use_of(named)
    grammar = tool_grammar(use, form, marked.special_tokens)
    for seed in range(8):
        text = walked(compiler, grammar, seed, marked)
        said, calls = parsed(text, (), use, form)
        assert said == "" and calls, text
        assert choice == "required" or len(calls) == 1
        for name, arguments, problem in calls:
            assert not problem, (text, problem)
            schema = {"weather": WEATHER, "add": ADD}[name]
            jsonschema.validate(json.loads(arguments), schema)
            assert choice in ("required", name)


@pytest.mark.parametrize("family", sorted(FORMATS))
def test_strict_tools_leave_text_free_and_calls_good(compiler, marked, family):
    form = FORMATS[family]
    use = use_of(tools=[function("weather", WEATHER, strict=True)])
    grammar = tool_grammar(use, form, marked.special_tokens)
    state = compiler.start(grammar)
    for token_id in marked.encode("Just a text."):
        assert state.allowed_mask()[token_id]
        state.accept(token_id)
    assert state.allowed_mask()[2]
    bare = form.layout == "object" and form.bare and not form.end
    begun = "" if bare else "Let me see. " + form.begin + form.lead
    state = compiler.start(grammar)
    for token_id in marked.encode(begun, allow_special=True):
        state.accept(token_id)
    opening = {"list": "[{", "xml": "<function=weather>", "named": "weather"}.get(form.layout, "{")
    wrong = {"list": "[[", "xml": "<function=x", "named": "x"}.get(form.layout, "{}")
    *most, last = marked.encode(wrong)
    for token_id in most:
        state.accept(token_id)
    assert not state.allowed_mask()[last]
    state.rollback(len(most))
    for token_id in marked.encode(opening):
        state.accept(token_id)


def test_without_strict_tools_or_a_form_the_model_is_free(marked):
    assert tool_grammar(use_of(), PLAIN, marked.special_tokens) is None
    answer = Grammar.json_object()
    both = tool_grammar(use_of(), PLAIN, marked.special_tokens, answer)
    assert "answer" in both.text
    with pytest.raises(InvalidParameter, match="beside tools"):
        tool_grammar(use_of(), PLAIN, marked.special_tokens, Grammar.regex("x"))


def with_template(tokenizer, template):
    return PipelineTokenizer(dataclasses.replace(tokenizer.vocabulary, chat_template=template))


def test_the_engine_makes_the_call_that_is_demanded(tiny_model, tokenizer):
    pytest.importorskip("llguidance")
    short = with_template(tokenizer, "{{ tools is none }}{{ messages[0].content }}")
    with Engine(tiny_model, short, max_batch=2) as engine:
        makes_the_call(LocalChat(engine))


def makes_the_call(chat):
    settings = {"tools": TOOLS, "parallel_tool_calls": False, "max_tokens": 170}
    answer = chat.complete(ASK, tool_choice="required", seed=3, **settings)
    assert answer.finish_reason == "tool_calls" and not answer.text
    assert all(not call.problem for call in answer.tool_calls)
    one = {"type": "function", "function": {"name": "add"}}
    answer = chat.complete(ASK, tools=TOOLS, tool_choice=one, temperature=0, max_tokens=150)
    assert [call.name for call in answer.tool_calls] == ["add"]
    assert answer.completion_tokens > 0
    assert chat.complete(ASK, tools=TOOLS, tool_choice="none", max_tokens=5).tool_calls == ()


# --- what is asked ---


@pytest.mark.parametrize(
    ("given", "param", "told"),
    [
        ({"tools": "x"}, "tools", "a list"),
        ({"tools": [5]}, "tools", "type 'function'"),
        ({"tools": [{"type": "retrieval"}]}, "tools", "type 'function'"),
        ({"tools": [function("")]}, "tools", "1 to 64"),
        ({"tools": [function("a b")]}, "tools", "1 to 64"),
        ({"tools": [function("a"), function("a")]}, "tools", "a second 'a'"),
        ({"tools": [function("a", 5)]}, "tools", "JSON schema"),
        ({"tools": [function("a", {"type": "string"})]}, "tools", "an object"),
        ({"tools": [function(f"a{i}") for i in range(129)]}, "tools", "at most 128"),
        ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice", "must be"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "wether"}}},
            "tool_choice",
            "did you mean 'weather'",
        ),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": TOOLS, "parallel_tool_calls": "yes"}, "parallel_tool_calls", "true or false"),
        (
            {"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}},
            "tool_choice",
            "another form",
        ),
        ({"tols": TOOLS}, "tols", "did you mean 'tools'"),
    ],
)
def test_bad_settings_say_which_and_why(given, param, told):
    with pytest.raises(InvalidParameter, match=told) as caught:
        Settings.of(given)
    assert caught.value.param == param and "\n" not in str(caught.value)


def test_families_are_known_by_their_templates():
    found = {
        "hermes": "{% if tools %}<tool_call>{% endif %}",
        "mistral": "{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]",
        "mistral_named": "{{ tools }}[TOOL_CALLS][ARGS]",
        "llama3": '{{ tools }} {"name": x, "parameters": y}',
        "qwen3_coder": "{{ tools }}<tool_call><function=x><parameter=y>",
        "json": "{{ tools | tojson }}",
        "": "{{ messages }} <tool_call>",
    }
    for family, template in found.items():
        assert format_of(template)[0] == family
    assert format_of(None) == ("", PLAIN)


HISTORY = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "weather", "arguments": W}}
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "Sunny."},
]


def test_a_template_that_knows_tools_gets_arguments_as_objects():
    told = for_template(HISTORY, use_of(), knows_tools=True)
    assert told[1]["tool_calls"][0]["function"]["arguments"] == json.loads(W)
    assert told[0] == HISTORY[0] and told[2] == HISTORY[2]


def test_a_template_that_knows_none_gets_texts():
    told = for_template(HISTORY, use_of(), knows_tools=False)
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert '"name": "weather"' in told[0]["content"] and '"add"' in told[0]["content"]
    assert (
        told[2]["content"] == f'<tool_call>\n{{"name": "weather", "arguments": {W}}}\n</tool_call>'
    )
    assert "Sunny." in told[3]["content"]
    system = [{"role": "system", "content": "Be kind."}, *ASK]
    assert for_template(system, use_of(), knows_tools=False)[0]["content"].startswith("Be kind.")


def test_tools_reach_the_template(tiny_model, tokenizer):
    template = (
        "{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}{{ messages[0].content }}"
    )
    with Engine(tiny_model, with_template(tokenizer, template), max_batch=1) as engine:
        chat = LocalChat(engine)
        with_tools = chat.complete(ASK, tools=TOOLS, max_tokens=1).prompt_tokens
        without = chat.complete(ASK, max_tokens=1).prompt_tokens
    assert with_tools - without == len("<weather><add>")


def test_a_scripted_model_calls_too():
    chat = ScriptedChat([WRITTEN["hermes"]])
    answer = chat.complete(ASK, tools=TOOLS)
    assert answer.text == "Let me see." and answer.finish_reason == "tool_calls"
    assert [call.name for call in answer.tool_calls] == ["weather", "add"]
    assert len({call.id for call in answer.tool_calls}) == 2
    one = collect(
        ScriptedChat([WRITTEN["hermes"]]).stream(ASK, tools=TOOLS, parallel_tool_calls=False)
    )
    assert [call.name for call in one.tool_calls] == ["weather"]
    assert chat.complete(ASK).text == WRITTEN["hermes"]

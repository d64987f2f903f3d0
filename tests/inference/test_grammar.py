from __future__ import annotations

import json
import re
import time

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmworks.core.errors import MissingExtra, UserError
from lmworks.inference.engine import Engine
from lmworks.inference.grammar import MAX_DEPTH, Grammar
from lmworks.inference.grammar_ends import can_end
from lmworks.inference.grammar_files import response_format
from lmworks.inference.grammar_tokens import GrammarCompiler, GrammarError
from lmworks.inference.local import LocalChat
from lmworks.inference.sampling import InvalidParameter
from lmworks.tokenizers.train import train_on
from lmworks.tokenizers.trainers.base import Wanted

pytest.importorskip("llguidance")

TEXTS = [
    'the cat said: {"name": "Tom", "age": 12, "tags": ["a", "b"]} -1.5e3 true false null\n'
] * 3
TEXTS += ["über 14 Grüße, [x] (y) {z} - + . : ; ' ! ? é 0123456789 abcdefghijklmnopqrstuvwxyz"] * 3
CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "people": {"type": "integer", "minimum": 0, "maximum": 99_999_999},
        "tags": {"type": "array", "items": {"enum": ["old", "new"]}, "maxItems": 3},
    },
    "required": ["name", "people", "tags"],
    "additionalProperties": False,
}


def compiler_of(kind):
    tokenizer = train_on(TEXTS, kind, Wanted(vocab_size=420, min_frequency=1))
    compiler = GrammarCompiler(tokenizer, [], tokenizer.vocab_size)
    compiler.tokenizer = tokenizer
    return compiler


@pytest.fixture(scope="module", params=["bpe", "sentencepiece-bpe", "unigram"])
def compiler(request):
    return compiler_of(request.param)


@pytest.fixture(scope="module")
def wordpiece():
    return compiler_of("wordpiece")


@pytest.fixture(scope="module")
def bytewise(tokenizer):
    return GrammarCompiler(tokenizer, [2], tokenizer.vocab_size)


@pytest.mark.parametrize("seed", range(12))
def test_any_path_through_any_kind_of_vocabulary_meets_the_schema(compiler, walk, seed):
    text = walk(compiler, Grammar.json_schema(CITY), seed, ())
    jsonschema.validate(json.loads(text), CITY)


@pytest.mark.parametrize("seed", range(12))
def test_any_path_meets_the_expression(compiler, walk, seed):
    expression = "(cat|the|Tom){2,4} [a-z]{1,9}-[0-9]{4}"
    assert re.fullmatch(expression, walk(compiler, Grammar.regex(expression), seed, ()))


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece-bpe", "unigram", "wordpiece"])
def test_a_first_token_counts_as_it_is_shown(kind):
    """SentencePiece and WordPiece do not show the blank of a first token, but of later ones."""
    compiler = compiler_of(kind)
    tokenizer = compiler.tokenizer
    ids = tokenizer.encode("cat said")
    state = compiler.start(Grammar.regex("cat said"))
    decoder, text = state.stream_decoder(), ""
    for token_id in ids:
        assert state.allowed_mask()[token_id], (text, tokenizer.token_text(token_id))
        state.accept(token_id)
        text += decoder.push(token_id)
    assert state.finished
    assert text + decoder.finish() == "cat said" == tokenizer.decode(ids)


@pytest.mark.parametrize("seed", range(12))
def test_wordpiece_writes_what_its_words_can(wordpiece, walk, seed):
    expression = "(cat|tom|age)( (said|true|,)){1,4}"
    assert re.fullmatch(expression, walk(wordpiece, Grammar.regex(expression), seed, ()))


def test_where_a_vocabulary_can_not_go_on_it_is_told(wordpiece, walk):
    with pytest.raises(GrammarError, match="no token of this vocabulary"):
        walk(wordpiece, Grammar.json_schema(CITY), 0, ())
    with pytest.raises(InvalidParameter, match="no token of this vocabulary"):
        wordpiece.start(Grammar.regex("[Ա-Ֆ]+"))


def test_lark_grammars_and_special_tokens(bytewise, walk):
    grammar = Grammar.lark('start: sum\nsum: NUMBER ("+" NUMBER){1,3}\nNUMBER: /[0-9]{1,3}/')
    for seed in range(20):
        assert re.fullmatch(r"\d{1,3}(\+\d{1,3}){1,3}", walk(bytewise, grammar, seed, (2,)))


LEAVES = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "integer"}]),
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-50, 50),
        st.integers(0, 100),
    ),
    st.builds(
        lambda low: {"type": "number", "minimum": low, "maximum": low + 5}, st.integers(-3, 3)
    ),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 3),
        st.integers(0, 4),
    ),
    st.sampled_from([{"type": "string", "pattern": "^[a-c]{2,3}-[0-9]+$"}]),
    st.sampled_from([{"type": "string", "format": "date"}, {"type": "string", "format": "uuid"}]),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.one_of(st.text(max_size=4), st.integers(-9, 9), st.booleans()), min_size=1),
    ),
    st.builds(lambda value: {"const": value}, st.text(max_size=5)),
)


def _objects(inner):
    def build(properties, optional, closed):
        schema = {"type": "object", "properties": properties}
        schema["required"] = sorted(name for name in properties if name not in optional)
        return schema | ({"additionalProperties": False} if closed else {})

    names = st.text(st.sampled_from('ab é"\\'), min_size=1, max_size=3)
    return st.builds(
        build, st.dictionaries(names, inner, max_size=3), st.sets(names), st.booleans()
    )


def _arrays(inner):
    def build(items, low, more):
        return {"type": "array", "items": items, "minItems": low, "maxItems": low + more}

    return st.builds(build, inner, st.integers(0, 2), st.integers(0, 2))


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        _objects(inner),
        _arrays(inner),
        st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, seed=st.integers(0, 10**6))
def test_made_up_schemas_are_always_met(bytewise, walk, schema, seed):
    text = walk(bytewise, Grammar.json_schema(schema), seed, (2,))
    jsonschema.validate(json.loads(text), schema)


def test_any_json_object(bytewise, walk):
    for seed in range(30):
        assert isinstance(json.loads(walk(bytewise, Grammar.json_object(), seed, (2,))), dict)


ITSELF = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
UNMET = [
    False,
    {"enum": []},
    {"type": "integer", "minimum": 5, "maximum": 3},
    {"allOf": [{"type": "string"}, {"type": "number"}]},
    {"type": "object", "properties": {"a": False}, "required": ["a"]},
    ITSELF,
    {"$ref": "#"},
    {"type": "array", "minItems": 1, "items": {"$ref": "#"}},
    {"anyOf": [ITSELF, {"$ref": "#/anyOf/0"}]},
]
NO_SCHEMAS = [
    "text",
    5,
    None,
    [],
    {"type": "foo"},
    {"type": "string", "pattern": "("},
    {"$ref": "http://127.0.0.1:1/schema"},
    {"$ref": "#/nowhere"},
    {"properties": 5},
    {"type": "array", "uniqueItems": True},
]


@pytest.mark.parametrize("schema", [*UNMET, *NO_SCHEMAS], ids=str)
def test_what_can_not_be_met_or_is_no_schema_is_refused(bytewise, schema):
    with pytest.raises(InvalidParameter, match=r"^response_format: ") as caught:
        bytewise.start(Grammar.json_schema(schema))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 1}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"type": "string"}}},
        {"type": ["object", "null"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"$ref": "#/else where/x", "else where": {"x": {"type": "null"}}},
    ],
)
def test_what_ends_is_not_refused(schema):
    assert can_end(schema)


def test_unknown_keywords_are_passed_over_where_the_schema_is_not_strict(bytewise, walk):
    schema = {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "maxItems": 2}
    value = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    grammar = Grammar.of_response_format(value)
    assert isinstance(json.loads(walk(bytewise, grammar, 0, (2,))), list)


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "grammar",
    [
        lambda: Grammar.json_schema(nested(MAX_DEPTH + 1)),
        lambda: Grammar.json_schema(nested(5000)),
        lambda: Grammar.json_schema({"enum": ["x" * 300_000]}),
        lambda: Grammar.json_schema({"enum": [f"x{i}" for i in range(15_000)]}),
        lambda: Grammar.json_schema({f"p{i}": i for i in range(20_000)}),
        lambda: Grammar.regex("((((a{500}){500}){500}){500}){500}"),
        lambda: Grammar.regex("(a|b)*a(a|b){200}x"),
        lambda: Grammar.lark("start: a\na: a a | a a a | b\nb: a | b"),
        lambda: Grammar.lark("start: " + "(" * 5000),
    ],
)
def test_hostile_grammars_are_refused_or_built_in_bounded_time(bytewise, grammar):
    began = time.monotonic()
    try:
        state = bytewise.start(grammar())
        for _ in range(50):
            allowed = state.allowed_mask().nonzero()[0]
            state.accept(int(allowed[-1]))
    except (InvalidParameter, RuntimeError) as error:
        assert "\n" not in str(error)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "value",
    [
        "json",
        {"type": "jsn_object"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        {"type": "grammar"},
        {"type": "grammar", "grammar": {"syntax": "bnf", "definition": "x"}},
        {"type": "grammar", "grammar": {"syntax": "regex", "definition": ""}},
        {"type": "grammar", "grammar": {"syntax": "lark", "definition": 5}},
    ],
    ids=str,
)
def test_a_bad_response_format_says_so(value):
    with pytest.raises(InvalidParameter, match=r"^response_format: "):
        Grammar.of_response_format(value)


@pytest.mark.parametrize("text", ["(", "(?=a)b", "[^\\s\\S]", "\\"])
def test_a_bad_expression_is_refused(bytewise, text):
    with pytest.raises(InvalidParameter, match=r"^response_format: "):
        bytewise.start(Grammar.regex(text))


@pytest.mark.parametrize(
    "text", ['start: "a" b', "begin: /x/", "start: /(/", "{", "start: %json {"]
)
def test_a_bad_lark_grammar_is_refused(bytewise, text):
    with pytest.raises(InvalidParameter, match=r"^response_format: "):
        bytewise.start(Grammar.lark(text))


def test_reasons_are_short_and_places_the_user_s_own(bytewise):
    with pytest.raises(InvalidParameter) as caught:
        bytewise.start(Grammar.json_schema(UNMET[2]))
    told = "response_format: Unsatisfiable schema: minimum (5) is greater than maximum (3)"
    assert str(caught.value) == told
    with pytest.raises(InvalidParameter, match='line 2, column 4: unknown name: "b"'):
        bytewise.start(Grammar.lark("start: a\na: b"))


def test_compiled_once_and_started_anew(bytewise, tokenizer, monkeypatch):
    grammar = Grammar.regex("once[0-9]")
    first = bytewise.start(grammar)
    [o] = tokenizer.encode("o")
    first.accept(o)
    monkeypatch.setattr(bytewise, "_compile", None)  # would fail if it were asked again
    second = bytewise.start(Grammar.regex("once[0-9]"))
    assert second.allowed_mask()[o] and not first.allowed_mask()[o]


def test_rollback_forgets_tokens(bytewise, tokenizer):
    state = bytewise.start(Grammar.regex("ab[0-9]"))
    before = state.allowed_mask()
    for token_id in tokenizer.encode("ab"):
        state.accept(token_id)
    state.rollback(2)
    assert (state.allowed_mask() == before).all()


def test_the_engine_holds_an_answer_to_its_form_and_ends_it(engine):
    chat = LocalChat(engine)
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    for seed in range(4):
        answer = chat.complete_text("Tell: ", response_format=form, seed=seed, max_tokens=150)
        assert answer.finish_reason == "stop"
        jsonschema.validate(json.loads(answer.text), CITY)
    greedy = chat.complete([{"role": "user", "content": "x"}], response_format=form, temperature=0)
    jsonschema.validate(json.loads(greedy.text), CITY)


def test_forms_in_one_batch_do_not_touch_each_other(engine):
    chat = LocalChat(engine)
    expressions = ["[a-f]{20}", "[0-9]{20}", "[x-z]{20}", None]
    streams = []
    for expression in expressions:
        form = expression and {
            "type": "grammar",
            "grammar": {"syntax": "regex", "definition": expression},
        }
        streams.append(chat.stream_text("Go: ", response_format=form, seed=1, max_tokens=30))
    texts = ["".join(delta.text for delta in stream) for stream in streams]
    for expression, text in zip(expressions[:3], texts[:3], strict=True):
        assert re.fullmatch(expression, text)
    assert texts[3] == chat.complete_text("Go: ", seed=1, max_tokens=30).text


def test_a_missing_package_is_named(tokenizer, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(MissingExtra, match=r'pip install "lmworks\[structured\]"'):
        GrammarCompiler(tokenizer, [2], 260)


def test_forms_out_of_files(tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "integer"}')
    form = response_format(json_schema=str(schema))
    assert form["json_schema"] == {"schema": {"type": "integer"}, "strict": True}
    grammar = tmp_path / "grammar.lark"
    grammar.write_text('start: "x"')
    assert response_format(grammar=str(grammar))["grammar"]["definition"] == 'start: "x"'
    assert response_format() is None
    with pytest.raises(UserError, match="one form at a time"):
        response_format(regex="x", grammar=str(grammar))
    with pytest.raises(UserError, match="can't be read"):
        response_format(grammar=str(tmp_path / "none"))


def test_an_engine_without_end_tokens_can_be_held_too(tiny_model, tokenizer):
    with Engine(tiny_model, tokenizer, max_batch=1) as engine:
        compiler = GrammarCompiler(engine.tokenizer, [], engine.vocab_size)
        assert compiler.start(Grammar.regex("a")).allowed_mask().sum() == 1

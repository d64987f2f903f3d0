"""Configs: unknown keys, wrong types, nested values, `--set`, merging."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmworks.core.config import (
    COSMETIC,
    REFERENCE,
    VALUE,
    from_mapping,
    merge,
    option,
    options,
    parse_set,
    to_mapping,
    type_name,
)
from lmworks.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = option(8, help="how wide")
    depth: int = option(2, help="how deep")


@dataclass(frozen=True, kw_only=True)
class Outer:
    corpus: str = option(help="the input", role=REFERENCE)
    learning_rate: float = option(1e-3, help="step size")
    kind: Literal["a", "b"] = option("a", help="which")
    threads: int | None = option(None, help="how many", role=COSMETIC)
    names: list[str] = option(["x"], help="several", flag=False)
    inner: Inner = option(Inner(), help="nested")
    maybe: Inner | None = option(None, help="nested or none")
    many: list[Inner] = option([], help="several nested")


def test_the_fields_carry_help_role_and_flag() -> None:
    found = {item.name: item for item in options(Outer)}
    assert found["corpus"].required and found["corpus"].role == REFERENCE
    assert found["threads"].role == COSMETIC and found["threads"].default is None
    assert found["learning_rate"].role == VALUE and found["learning_rate"].help == "step size"
    assert not found["names"].flag and found["names"].default == ["x"]
    assert found["inner"].nested and not found["kind"].nested


def test_values_go_in_and_come_back_the_same() -> None:
    values = {"corpus": "c", "inner": {"width": 3}, "maybe": {"depth": 1}, "many": [{"width": 4}]}
    config = from_mapping(Outer, values)
    assert config.inner == Inner(width=3)
    assert config.maybe == Inner(depth=1)
    assert config.many == [Inner(width=4)]
    assert from_mapping(Outer, to_mapping(config)) == config


@dataclass(frozen=True, kw_only=True)
class Gentle:
    """Its default for `inner` is not that of `Inner` itself, as fine-tuning's rates are not."""

    inner: Inner = option(Inner(width=99), help="nested")
    outer: Outer = option(Outer(corpus="c", inner=Inner(depth=7)), help="two levels")


def test_one_nested_key_leaves_the_others_at_the_fields_own_default() -> None:
    config = from_mapping(Gentle, {"inner": {"depth": 5}, "outer": {"inner": {"width": 1}}})
    assert config.inner == Inner(width=99, depth=5)
    assert config.outer == Outer(corpus="c", inner=Inner(width=1, depth=7))


def test_a_list_default_is_not_shared_between_configs() -> None:
    first = from_mapping(Outer, {"corpus": "c"})
    first.names.append("y")
    assert Outer(corpus="c").names == ["x"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"corpus": "c", "learning_rat": 1}, "did you mean 'learning_rate'"),
        ({"corpus": "c", "inner": {"widht": 1}}, "did you mean 'inner.width'"),
        ({"corpus": "c", "maybe": {"widht": 1}}, "did you mean 'maybe.width'"),
        ({"corpus": "c", "many": [{}, {"widht": 1}]}, "did you mean 'many.1.width'"),
        ({"corpus": "c", "zzzzqq": 1}, "known: corpus, learning_rate"),
        ({"corpus": "c", 5: 1}, "unknown key '5'"),
    ],
)
def test_an_unknown_key_names_the_nearest(values: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        from_mapping(Outer, values, where="recipe.yaml, step x")
    assert said in str(caught.value)
    assert str(caught.value).startswith("recipe.yaml, step x: unknown key")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "'corpus' is missing"),
        ({"corpus": "c", "learning_rate": "fast"}, "learning_rate = 'fast' is not valid"),
        ({"corpus": "c", "kind": "c"}, "kind = 'c' is not valid"),
        ({"corpus": "c", "threads": 1.5}, "threads"),
        ({"corpus": "c", "inner": {"width": []}}, "inner.width = [] is not valid"),
        ({"corpus": "c", "inner": 3}, "inner = 3 is not valid"),
        ({"corpus": None}, "corpus = None is not valid"),
    ],
)
def test_a_wrong_value_is_one_line(values: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        from_mapping(Outer, values)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [None, [1], "text", 3])
def test_something_that_is_no_mapping_is_said(values: object) -> None:
    with pytest.raises(UserError, match="config"):
        from_mapping(Outer, values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("seed=1", ["seed"], 1),
        ("a.b=[1, 2]", ["a", "b"], [1, 2]),
        (" a =true", ["a"], True),
        ("a=b=c", ["a"], "b=c"),
        ("a=", ["a"], None),
        ("a=text", ["a"], "text"),
        ("rate=1e-3", ["rate"], "1e-3"),  # YAML 1.1; pydantic reads it as a float
    ],
)
def test_set_reads_its_value_as_yaml(text: str, path: list[str], value: object) -> None:
    assert parse_set(text) == (path, value)


def test_a_float_without_a_point_is_understood() -> None:
    path, value = parse_set("learning_rate=3e-4")
    assert from_mapping(Outer, merge({"corpus": "c"}, path, value)).learning_rate == 3e-4


@pytest.mark.parametrize(
    "text",
    ["seed", "=1", " =1", "a=[", "a=2024-99-99", "a=0b_", "a=" + "[" * 3000, "a=!!python/name:os"],
)
def test_a_malformed_set_is_a_user_error(text: str) -> None:
    with pytest.raises(UserError, match="--set"):
        parse_set(text)


@given(st.text(max_size=30))
def test_no_text_after_set_is_a_traceback(text: str) -> None:
    try:
        path, _ = parse_set(text)
    except UserError:
        return
    assert path


def test_merge_copies_and_makes_the_levels_it_needs() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(base, ["a", "b"], 9) == {"a": {"b": 9, "c": 2}, "d": 3}
    assert merge(base, ["e", "f"], 1)["e"] == {"f": 1}
    assert merge(base, ["d", "x"], 1)["d"] == {"x": 1}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}


def test_type_names_are_short() -> None:
    found = {item.name: type_name(item.type) for item in options(Outer)}
    assert found["kind"] == "a|b"
    assert found["threads"] == "int or none"
    assert found["names"] == "list of str"
    assert found["learning_rate"] == "float"
    assert dataclasses.is_dataclass(Outer)

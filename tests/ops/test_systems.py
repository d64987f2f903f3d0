"""The list of systems is whole, and everything it points to is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lmworks.cli.systems import command
from lmworks.cli.table import COMMANDS
from lmworks.core.errors import UserError
from lmworks.core.tables import load_target
from lmworks.ops.systems import System, counts, load_systems, of_chapter, to_markdown

ROOT = Path(__file__).parents[2]
KEYS = ["chapter", "system", "state", "command", "api", "evidence"]
PRESENT = [row for row in load_systems() if row.state != "missing"]


def parts(text: str) -> list[str]:
    return [part for part in text.split(", ") if part]


def test_all_systems_are_listed_once():
    rows = load_systems()
    assert len(rows) == len({row.system for row in rows}) == 88
    assert [row.number for row in of_chapter("22")] == [22] * 4
    assert sorted({row.number for row in rows}) == list(range(1, 23))
    assert sum(counts(rows).values()) == 88


@pytest.mark.parametrize("row", PRESENT, ids=lambda row: row.system)
def test_what_a_row_names_is_there(row: System):
    for name in parts(row.command):
        assert name.removeprefix("lmworks ") in COMMANDS, name
        assert name.startswith("lmworks ")
    for target in parts(row.api):
        assert load_target(target) is not None
    for path in parts(row.evidence):
        assert (ROOT / path).exists(), path


def test_the_page_is_fresh():
    page = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
    assert page == to_markdown(load_systems()), "run `lmworks systems --markdown > docs/systems.md`"


def test_a_row_that_contradicts_itself_is_refused():
    row = {"chapter": "1 Tokens", "system": "A", "command": "", "api": "", "evidence": ""}
    with pytest.raises(ValueError, match="needs an api"):
        System(**row, state="partial")
    with pytest.raises(ValueError, match="no command"):
        System(**(row | {"api": "a:b"}), state="missing")
    with pytest.raises(ValueError, match="command and evidence"):
        System(**(row | {"api": "a:b"}), state="works")


def test_command_json():
    rows = json.loads(CliRunner().invoke(command, ["--json"]).stdout)
    assert len(rows) == 88
    assert all(list(row) == KEYS for row in rows)


def test_command_prints_chapters():
    text = CliRunner().invoke(command, []).stdout
    assert text.count("missing ") >= counts(load_systems())["missing"]
    assert "22 LLMOps" in text and text.splitlines()[-1].startswith("88 systems: ")
    one = CliRunner().invoke(command, ["--chapter", "tokenization"]).stdout
    assert one == CliRunner().invoke(command, ["--chapter", "1"]).stdout
    assert one.splitlines()[-1].startswith("4 systems: ")
    page = CliRunner().invoke(command, ["--markdown"]).stdout
    assert page == to_markdown(load_systems())


@pytest.mark.parametrize(("name", "told"), [("23", "from 1 to 22"), ("Tokenisation", "did you")])
def test_unknown_chapter(name, told):
    with pytest.raises(UserError, match=told):
        of_chapter(name)

"""A stage's command is its config class: flags, choices, recipes, `--set`, and what is missing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest
from click.testing import CliRunner, Result

from lmworks.cli.main import main
from lmworks.cli.stage_command import help_text, stage_command
from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = option(0.5, help="a rate")
    steps: int = option(4, help="some steps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Make toys.

    Examples:
        lmworks toy --source a
        lmworks toy --source a \\
            --size 3
    """

    source: str = option(role=REFERENCE, help="where from")
    size: int = option(2, help="how large")
    share: float = option(0.5, help="how much")
    kind: Literal["round", "Q8_0"] = option("round", help="which kind")
    bits: Literal[4, 8] = option(8, help="how many bits")
    limit: int | None = option(None, help="at most")
    names: list[str] = option(["a", "b"], help="some names")
    loud: bool = option(False, help="say more")
    clean: bool = option(True, help="tidy up")
    hidden: int = option(1, help="not on the command line", flag=False)
    inner: Inner = option(Inner(rate=0.25), help="more")


seen: list[ToyConfig] = []


@stage("toy", makes="toys")
def toy(config: ToyConfig, run: Run) -> dict[str, Any]:
    seen.append(config)
    return {"size": config.size, "loss": 1.23456789, "nested": {"a": 1}}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text").write_text("x")
    seen.clear()
    return "in"


def call(*words: str) -> Result:
    result = CliRunner().invoke(stage_command("toy", toy, "Make toys."), list(words))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_flags_are_the_fields(source: str) -> None:
    result = call(
        *("--source", source, "--size", "3", "--share", "0.125", "--kind", "Q8_0", "--loud"),
        *("--bits", "4", "--limit", "7", "--no-clean"),
    )
    assert result.exit_code == 0
    expected = ToyConfig(
        source="in", size=3, share=0.125, kind="Q8_0", bits=4, limit=7, loud=True, clean=False
    )
    assert seen == [expected]


def test_the_artifact_is_printed_and_the_config_apart(source: str) -> None:
    result = call("--source", source)
    assert result.stdout == "runs/toys  (toys, made)\n  size  2\n  loss  1.235\n  nested.a  1\n"
    assert "toy -> runs/toys\n" in result.stderr
    for line in ("source = in", "size = 2", "inner.rate = 0.25", "hidden = 1", "clean = True"):
        assert f"  {line}\n" in result.stderr
    assert "(toys, already there, unchanged)" in call("--source", source).stdout
    assert len(seen) == 1


def test_replace_and_out(source: str) -> None:
    call("--source", source, "--out", "here")
    with pytest.raises(UserError, match="--replace"):
        call("--source", source, "--out", "here", "--size", "9")
    assert call("--source", source, "--out", "here", "--size", "9", "--replace").exit_code == 0
    assert [config.size for config in seen] == [2, 9]


def test_set_reaches_every_field(source: str) -> None:
    call(
        *("--source", source, "--set", "hidden=5", "--set", "inner.steps=9"),
        *("--set", "names=[x]", "--set", "size=8", "--size", "1"),
    )
    (config,) = seen
    assert (config.hidden, config.names, config.size) == (5, ["x"], 8)
    assert config.inner == Inner(rate=0.25, steps=9)


def test_a_list_is_given_as_yaml_on_its_flag(source: str) -> None:
    call("--source", source, "--names", "[x, y]")
    assert seen[0].names == ["x", "y"]


def test_flags_go_before_the_recipe_and_set_before_both(source: str) -> None:
    Path("toy.yaml").write_text(
        "source: in\nsize: 5\nshare: 0.75\nloud: true\ninner: {steps: 6}\nhidden: 3\n"
    )
    call("--recipe", "toy.yaml", "--size", "6", "--no-loud", "--set", "hidden=4")
    (config,) = seen
    assert (config.size, config.share, config.loud, config.hidden) == (6, 0.75, False, 4)
    assert config.inner == Inner(rate=0.25, steps=6)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("size: [", "not valid YAML"),
        ("- a", "must hold settings"),
        ("", "must hold settings"),
        ("siez: 1", "toy.yaml: unknown key 'siez': did you mean 'size'?"),
        ("source: in\nsize: much", "toy.yaml: size = 'much' is not valid"),
        ("source: in\nsize: 2024-99-99", "not valid YAML"),
        ("1: 2", "unknown key '1'"),
        ("[" * 3000, "not valid YAML"),
    ],
)
def test_a_wrong_recipe_is_one_line(source: str, recipe: str, said: str) -> None:
    Path("toy.yaml").write_text(recipe)
    with pytest.raises(UserError) as caught:
        call("--source", source, "--recipe", "toy.yaml")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there_is_said(source: str) -> None:
    for name in ("none.yaml", "in"):
        with pytest.raises(UserError, match="can't be read"):
            call("--recipe", name)
    Path("bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="recipe"):
        call("--recipe", "bytes.yaml")


def test_a_dry_run_shows_the_inputs_and_makes_nothing(source: str) -> None:
    result = call("--source", source, "--dry-run")
    assert "size = 2" in result.stderr and result.stdout == ""
    assert not seen and not Path("runs").exists()
    with pytest.raises(UserError, match="neither a file or folder"):
        call("--source", "nowhere/at/all", "--dry-run")


def test_what_is_missing_is_named_by_its_flag(source: str) -> None:
    with pytest.raises(UserError, match="missing --source; see --help"):
        call("--size", "3")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kind", "square"], "'square' is not one of 'round', 'Q8_0'"),
        (["--bits", "5"], "'5' is not one of '4', '8'"),
        (["--size", "x"], "'x' is not a valid integer"),
        (["--siez", "1"], "No such option '--siez'"),
        (["--hidden", "1"], "No such option '--hidden'"),
        (["--inner", "1"], "No such option '--inner'"),
    ],
)
def test_a_wrong_flag_is_said(source: str, words: list[str], said: str) -> None:
    result = call("--source", source, *words)
    assert result.exit_code == 2 and said in result.stderr.replace("option:", "option")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--limit", "x"], "limit = 'x' is not valid"),
        (["--set", "inner.rat=1"], "did you mean 'inner.rate'"),
        (["--set", "nothing"], "write it as key=value"),
        (["--set", "size=[]"], "size = [] is not valid"),
        (["--set", "size.a=1"], "size = {'a': 1} is not valid"),
        (["--names", "[x"], "names"),
    ],
)
def test_a_wrong_value_is_one_line(source: str, words: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        call("--source", source, *words)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_help_says_all(source: str) -> None:
    text = call("--help").stdout
    assert "Make toys." in text
    assert "Examples:\n    lmworks toy --source a\n    lmworks toy --source a \\\n" in text
    flat = " ".join(text.split())
    assert "--source REF Where from (required)" in flat
    assert "--size INT How large [default: 2]" in flat
    assert "--kind round|Q8_0 Which kind [default: round]" in flat  # as it must be typed
    assert "--limit INT OR NONE At most" in flat
    assert "--loud / --no-loud Say more [default: false]" in flat
    assert "--clean / --no-clean Tidy up [default: true]" in flat
    assert "--hidden" not in text and "--inner" not in text


def test_a_config_without_examples_has_plain_help() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Plain:
        """Only this."""

    assert help_text(Plain) == "Only this."


def test_every_stage_command_dry_runs_to_a_clear_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lmworks.cli.table import COMMANDS, STAGE

    monkeypatch.chdir(tmp_path)
    for name, (target, _) in COMMANDS.items():
        if target.startswith(STAGE):
            assert main([*name.split(), "--dry-run"]) in (0, 2), name
            assert capsys.readouterr().err.count("Traceback") == 0
    assert list(tmp_path.iterdir()) == []

"""The command line as a whole: lists, help, errors in one line, exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import click
import pytest

from lmworks import __version__
from lmworks.cli import main as entry
from lmworks.cli import table
from lmworks.cli.main import main
from lmworks.core import progress
from lmworks.core.errors import MissingExtra, UserError

Monkey = pytest.MonkeyPatch
HEAVY = ("torch", "numba", "transformers", "pydantic", "fastapi", "numpy", "safetensors")


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: Monkey) -> Iterator[None]:
    """`--debug` and `--quiet` hold for a process; here every test is one."""
    monkeypatch.setenv("LMWORKS_DEBUG", "")
    yield
    progress.set_mode("auto")


Failing = Callable[[BaseException], None]


@pytest.fixture
def failing(monkeypatch: Monkey) -> Failing:
    """A command `fail` that ends with the given error."""

    def install(error: BaseException) -> None:
        @click.command()
        def command() -> None:
            raise error

        monkeypatch.setitem(entry.COMMANDS, "fail", ("tests:fail", "Fails."))
        monkeypatch.setattr(entry, "load_target", lambda target: command)

    return install


def test_the_root_help_lists_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, (_, line) in table.COMMANDS.items():
        if " " not in name:
            assert f"  {name} " in out and line.split()[0] in out
    for name in table.GROUPS:
        assert f"  {name} " in out
    assert "quickstart" in out


def test_a_groups_help_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for group in table.GROUPS:
        assert main([group, "--help"]) == 0
        out = capsys.readouterr().out
        own = [n.split()[1] for n in table.COMMANDS if n.startswith(group + " ")]
        assert own and all(f"  {name} " in out for name in own)


def test_every_groups_command_has_its_group() -> None:
    assert {n.split()[0] for n in table.COMMANDS if " " in n} == set(table.GROUPS)


CHECK = """
import contextlib, io, json, sys
from lmworks.cli.main import main
from lmworks.cli.table import COMMANDS, GROUPS
heavy, result = json.loads(sys.argv[1]), {}
for words in ["", *COMMANDS, *GROUPS]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main([*words.split(), "--help"])
    loaded = sorted(name for name in heavy if name in sys.modules)
    result[words] = [status, len(out.getvalue()), loaded]
print(json.dumps(result))
"""


def test_the_help_of_every_command_is_quick_to_come() -> None:
    """One process asks for all: nothing heavy may be loaded after any of them."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHECK, json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result.keys() >= set(table.COMMANDS)
    for words, (status, length, loaded) in result.items():
        assert (status, loaded) == (0, []) and length > 60, words


def test_no_words_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["train"]):
        assert main(words) == 0
        out, err = capsys.readouterr()
        assert "Commands:\n" in out and err == ""


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lmworks {__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quickstar"], "unknown command 'quickstar': did you mean 'quickstart'?"),
        (["train", "pretran"], "did you mean 'pretrain'? `lmworks train --help` lists them"),
        (["zzzzzzzz"], "unknown command 'zzzzzzzz': `lmworks --help` lists them"),
        (["train pretrain"], "unknown command 'train pretrain'"),
        (["--nonsense"], "--nonsense"),
        (["show"], "(see `lmworks show --help`)"),
        (["train", "pretrain", "--dept", "3"], "--dept"),
        (["train", "pretrain", "--depth", "many"], "many"),
        (["show", "no/such/folder"], "not found"),
    ],
)
def test_a_wrong_word_is_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err
    assert err.startswith("lmworks: error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        UserError("the corpus is empty: add files"),
        UserError("two\nlines"),
        MissingExtra("trafilatura", "data", "reading HTML"),
    ],
)
def test_a_users_error_is_one_line_without_a_traceback(
    failing: Failing, capsys: pytest.CaptureFixture[str], error: UserError
) -> None:
    failing(error)
    assert main(["fail"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == f"lmworks: error: {' '.join(str(error).split())}\n"


def test_debug_shows_the_traceback(failing: Failing, capsys: pytest.CaptureFixture[str]) -> None:
    failing(UserError("the corpus is empty"))
    assert main(["--debug", "fail"]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("lmworks: error: the corpus is empty\n")


@pytest.mark.parametrize("words", [["fail"], ["--debug", "fail"]])
def test_ctrl_c_is_130_and_says_how_to_go_on(
    failing: Failing, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    failing(KeyboardInterrupt())
    assert main(words) == 130
    said = capsys.readouterr().err.strip()
    assert said == "lmworks: stopped; run the same command again to go on"


def test_out_of_memory_is_said(failing: Failing, capsys: pytest.CaptureFixture[str]) -> None:
    failing(MemoryError())
    assert main(["fail"]) == 2
    assert "out of memory" in capsys.readouterr().err


def test_a_bug_of_ours_is_not_hidden(failing: Failing) -> None:
    failing(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["fail"])


def test_an_exit_status_of_a_command_is_passed_on(failing: Failing) -> None:
    failing(click.exceptions.Exit(3))
    assert main(["fail"]) == 3


def test_quiet_says_nothing(failing: Failing, capsys: pytest.CaptureFixture[str]) -> None:
    failing(UserError("x"))
    main(["--quiet", "fail"])
    capsys.readouterr()
    progress.say("hello")
    assert capsys.readouterr().err == ""
    main(["fail"])
    capsys.readouterr()
    progress.say("hello")
    assert capsys.readouterr().err == "hello\n"


def test_a_reader_that_went_away_is_no_error() -> None:
    command = f"{sys.executable} -m lmworks.cli.main systems | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == "" and done.stdout.splitlines()[-1] == "0"


def test_what_the_system_refuses_is_one_line(tmp_path, capsys) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("words and more words. " * 300)
    out = "/proc/self/nowhere/deep"
    status = main(["--quiet", "data", "build", "--folder", str(tmp_path / "texts"), "--out", out])
    said = capsys.readouterr().err.splitlines()
    assert status == 2
    assert said[-1].startswith("lmworks: error: ") and "/proc/self" in said[-1]

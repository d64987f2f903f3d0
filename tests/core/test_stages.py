"""Stages: cached, resumed, all or nothing, one writer, and a lineage that tells the truth."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmworks
from lmworks.core import stages
from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.files import hash_folder, write_text
from lmworks.core.stages import Artifact, Run, stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig:
    size: int = option(1, help="a value")
    source: str = option("", role=REFERENCE, help="an input")
    threads: int = option(0, role=COSMETIC, help="a speed")


calls: list[ToyConfig] = []
before_end: list[Callable[[Run], None]] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    calls.clear()
    before_end.clear()


@stage("toy", makes="toys")
def toy(config: ToyConfig, run: Run) -> dict[str, Any]:
    calls.append(config)
    write_text(run.folder / "size.txt", str(config.size))
    write_text(run.work / "checkpoint", "half")
    if source := run.inputs.get("source"):
        write_text(run.folder / "copy.txt", (source / "text").read_text())
    for step in before_end:
        step(run)
    return {"size": config.size}


def crash(run: Run) -> None:
    raise ZeroDivisionError


def neighbours(out: Path) -> list[str]:
    return sorted(p.name for p in out.parent.iterdir())


def test_an_artifact_and_its_lineage(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_text(source / "text", "hello")
    out = tmp_path / "runs" / "a"
    made = toy(ToyConfig(size=3, source=str(source)), out)
    assert (made.kind, made.metrics, made.cached) == ("toys", {"size": 3}, False)
    assert (out / "copy.txt").read_text() == "hello"
    assert neighbours(out) == ["a"]  # no lock, no partial, nothing hidden
    assert sorted(p.name for p in out.iterdir()) == ["copy.txt", "lmworks.json", "size.txt"]
    manifest = Artifact.load(out).manifest
    assert manifest == made.manifest
    assert manifest["stage"] == "toy" and manifest["lmworks"] == lmworks.__version__
    assert manifest["config"] == {"size": 3, "source": str(source), "threads": 0}
    entry = {"reference": str(source), "sha256": hash_folder(source)}
    assert manifest["inputs"] == {"source": entry}
    assert manifest["sha256"] == hash_folder(out, skip=("lmworks.json",))
    assert manifest["seconds"] >= 0 and manifest["peak_memory_bytes"] > 0


def test_an_equal_run_is_found_done(tmp_path: Path) -> None:
    toy(ToyConfig(), tmp_path / "a")
    again = toy(ToyConfig(), tmp_path / "a")
    assert again.cached and again.metrics == {"size": 1} and len(calls) == 1


def test_another_config_is_refused_unless_told_to_replace(tmp_path: Path) -> None:
    toy(ToyConfig(), tmp_path / "a")
    with pytest.raises(UserError, match="already holds a toys made with other settings"):
        toy(ToyConfig(size=2), tmp_path / "a")
    assert (tmp_path / "a" / "size.txt").read_text() == "1"
    toy(ToyConfig(size=2), tmp_path / "a", replace=True)
    assert (tmp_path / "a" / "size.txt").read_text() == "2"
    assert [p for p in neighbours(tmp_path / "a") if not p.endswith(".lock")] == ["a"]


def test_a_replacement_that_fails_leaves_the_former(tmp_path: Path) -> None:
    toy(ToyConfig(), tmp_path / "a")
    before_end.append(crash)
    with pytest.raises(ZeroDivisionError):
        toy(ToyConfig(size=2), tmp_path / "a", replace=True)
    assert toy(ToyConfig(), tmp_path / "a").cached


@pytest.mark.parametrize("replace", [False, True])
def test_a_foreign_folder_is_never_overwritten(tmp_path: Path, replace: bool) -> None:
    write_text(tmp_path / "a" / "thesis.txt", "years")
    with pytest.raises(UserError, match="did not make"):
        toy(ToyConfig(), tmp_path / "a", replace=replace)
    assert (tmp_path / "a" / "thesis.txt").read_text() == "years" and not calls


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert toy(ToyConfig(), tmp_path / "a").kind == "toys"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"fingerprint": "x"}', '{"kind": "y"}'])
def test_a_damaged_manifest_is_said(tmp_path: Path, content: str) -> None:
    write_text(tmp_path / "a" / "lmworks.json", content)
    for use in (lambda: toy(ToyConfig(), tmp_path / "a"), lambda: Artifact.load(tmp_path / "a")):
        with pytest.raises(UserError, match=r"lmworks\.json"):
            use()
    assert (tmp_path / "a" / "lmworks.json").read_text() == content


@pytest.mark.parametrize("out", [".", "..", "/", ""])
def test_a_place_that_has_no_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="name a folder"):
        toy(ToyConfig(), out)
    assert not calls and list(tmp_path.iterdir()) == [tmp_path / "here"]


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "")
    with pytest.raises(UserError, match="is a file"):
        toy(ToyConfig(), tmp_path / "a")
    with pytest.raises(UserError, match="is a file"):
        toy(ToyConfig(), tmp_path / "a" / "b")


def test_a_stopped_run_goes_on_with_its_files(tmp_path: Path) -> None:
    found: list[str] = []

    def stop(run: Run) -> None:
        write_text(run.work / "more", "1")
        raise KeyboardInterrupt

    def look(run: Run) -> None:
        found.extend(sorted(p.name for p in run.work.iterdir()))

    before_end.append(stop)
    with pytest.raises(KeyboardInterrupt):
        toy(ToyConfig(), tmp_path / "a")
    assert not (tmp_path / "a").exists() and (tmp_path / "a.partial" / ".work").exists()
    before_end[:] = [look]
    assert not toy(ToyConfig(), tmp_path / "a").cached
    assert found == ["checkpoint", "more"]
    assert not (tmp_path / "a" / ".work").exists() and not (tmp_path / "a.partial").exists()


@pytest.mark.parametrize("spoil", [None, "{", "[]"], ids=["another's", "no json", "no mapping"])
def test_what_another_config_left_is_thrown_away(tmp_path: Path, spoil: str | None) -> None:
    before_end.append(crash)
    with pytest.raises(ZeroDivisionError):
        toy(ToyConfig(size=2), tmp_path / "a")
    write_text(tmp_path / "a.partial" / "old.txt", "")
    if spoil:
        write_text(tmp_path / "a.partial" / ".state.json", spoil)
    before_end.clear()
    toy(ToyConfig(size=2 if spoil else 1), tmp_path / "a")
    assert not (tmp_path / "a" / "old.txt").exists()


@pytest.mark.parametrize("first", ["hash_folder", "write_json", "_put_in_place"])
def test_a_crash_after_the_work_loses_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    real = getattr(stages, first)

    def fail(path: Path, *rest: Any, **more: Any) -> Any:
        if first == "write_json" and path.name != "lmworks.json":
            return real(path, *rest, **more)
        raise UserError("the disk is full")

    kept: list[bool] = []
    monkeypatch.setattr(stages, first, fail)
    with pytest.raises(UserError, match="the disk is full"):
        toy(ToyConfig(), tmp_path / "a")
    monkeypatch.setattr(stages, first, real)
    before_end.append(lambda run: kept.append((run.work / "kept").exists()))
    partial = tmp_path / "a.partial"
    if (partial / ".work").exists():
        write_text(partial / ".work" / "kept", "")
    toy(ToyConfig(), tmp_path / "a")
    assert kept in ([], [True])  # either not run again, or with its checkpoints
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["lmworks.json", "size.txt"]


def test_a_kill_between_the_two_renames_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a"
    toy(ToyConfig(), out)

    class Killed(BaseException):
        pass

    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name == "a.partial":
            raise Killed
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(Killed):
        toy(ToyConfig(size=2), out, replace=True)
    monkeypatch.undo()
    assert not out.exists()
    assert toy(ToyConfig(), out).cached  # the former artifact is back
    calls.clear()
    toy(ToyConfig(size=2), out, replace=True)
    assert (out / "size.txt").read_text() == "2"
    assert not calls, "what was finished is not done again"
    assert neighbours(out) == ["a"]


def test_a_kill_after_the_second_rename_is_mended(tmp_path: Path) -> None:
    toy(ToyConfig(), tmp_path / "a")
    write_text(tmp_path / ".a.old" / "size.txt", "0")
    assert toy(ToyConfig(), tmp_path / "a").cached
    assert neighbours(tmp_path / "a") == ["a"]


def test_a_link_to_a_folder_may_be_replaced(tmp_path: Path) -> None:
    toy(ToyConfig(), tmp_path / "elsewhere")
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    toy(ToyConfig(size=2), tmp_path / "a", replace=True)
    assert toy(ToyConfig(size=2), tmp_path / "a").cached
    assert (tmp_path / "elsewhere" / "size.txt").read_text() == "1"
    assert neighbours(tmp_path / "a") == ["a", "elsewhere"]


def test_a_cosmetic_field_changes_nothing(tmp_path: Path) -> None:
    toy(ToyConfig(threads=1), tmp_path / "a")
    assert toy(ToyConfig(threads=2), tmp_path / "a").cached


def test_inputs_count_by_content_not_by_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_text(tmp_path / name / "text", "same")
    toy(ToyConfig(source=str(tmp_path / "one")), tmp_path / "a")
    assert toy(ToyConfig(source=str(tmp_path / "two")), tmp_path / "a").cached
    write_text(tmp_path / "two" / "text", "other")
    with pytest.raises(UserError, match="other settings or inputs"):
        toy(ToyConfig(source=str(tmp_path / "two")), tmp_path / "a")


def test_an_artifact_as_input_is_known_by_its_hash(tmp_path: Path) -> None:
    @stage("next", makes="toys")
    def following(config: ToyConfig, run: Run) -> dict[str, Any]:
        return {"read": (run.inputs["source"] / "size.txt").read_text()}

    first = toy(ToyConfig(size=7), tmp_path / "a")
    made = following(ToyConfig(source=str(tmp_path / "a")), tmp_path / "b")
    assert made.metrics == {"read": "7"}
    assert made.manifest["inputs"]["source"]["sha256"] == first.manifest["sha256"]
    # Made again elsewhere, at another time: still the same input.
    toy(ToyConfig(size=7), tmp_path / "c")
    assert following(ToyConfig(source=str(tmp_path / "c")), tmp_path / "b").cached


def test_an_endpoint_is_no_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs files"):
        toy(ToyConfig(source="http://host/v1"), tmp_path / "a")


def test_a_new_version_of_the_body_is_another_artifact(tmp_path: Path) -> None:
    toy(ToyConfig(), tmp_path / "a")

    @stage("toy", makes="toys", version=2)
    def newer(config: ToyConfig, run: Run) -> dict[str, Any]:
        return {}

    with pytest.raises(UserError, match="other settings"):
        newer(ToyConfig(), tmp_path / "a")


SCRIPT = """
import sys, time
from pathlib import Path
from dataclasses import dataclass
from lmworks.core.config import option
from lmworks.core.errors import UserError
from lmworks.core.files import write_text
from lmworks.core.stages import Run, stage

@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = option(3, help="")

@stage("slow", makes="toys")
def slow(config: Config, run: Run) -> dict:
    seen = sorted(p.name for p in run.work.iterdir())
    for step in range(len(seen), config.steps):
        write_text(run.work / str(step), "")
        print("step", step, flush=True)
        if "hang" in sys.argv and step == 1:
            time.sleep(60)
    return {"resumed_from": len(seen)}

try:
    print(slow(Config(), Path(sys.argv[1])).metrics, flush=True)
except UserError as error:
    print("error:", error, flush=True)
"""


def run_slow(out: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(out), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_killed_in_the_middle_then_resumed_with_one_writer_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "a"
    first = run_slow(out, "hang")
    assert first.stdout is not None
    assert [first.stdout.readline() for _ in range(2)] == ["step 0\n", "step 1\n"]
    second, _ = run_slow(out).communicate(timeout=30)
    assert second.startswith(f"error: another lmworks run is writing {out}")
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=30)
    assert not out.exists()
    third, _ = run_slow(out).communicate(timeout=30)
    assert third == "step 2\n{'resumed_from': 2}\n"
    assert neighbours(out) == ["a"]


def test_a_lock_that_was_taken_off_while_waiting_is_not_held(tmp_path: Path) -> None:
    """Opened before the former writer removed it, such a lock would keep nobody away."""
    import fcntl

    out, real = tmp_path / "a", fcntl.flock

    def flock(handle: int, how: int) -> None:
        (tmp_path / ".a.lock").unlink()
        real(handle, how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        with pytest.raises(UserError, match="another lmworks run"), stages._locked(out):
            raise AssertionError("two writers")
    with stages._locked(out), pytest.raises(UserError), stages._locked(out):
        raise AssertionError("two writers")


def test_the_time_is_of_the_work(tmp_path: Path) -> None:
    before_end.append(lambda run: time.sleep(0.05))
    assert toy(ToyConfig(), tmp_path / "a").manifest["seconds"] >= 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeveralConfig:
    """Several references in one field."""

    named: dict[str, str] = option({}, role=REFERENCE, help="")
    listed: list[str] = option([], role=REFERENCE, help="")


@stage("several", makes="thing")
def several(config: SeveralConfig, run: Run) -> dict[str, Any]:
    return {name: path.read_text() for name, path in run.inputs.items()}


def test_a_field_may_hold_several_references(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name)
    config = SeveralConfig(
        named={"x": str(tmp_path / "a"), "y": str(tmp_path / "b")}, listed=[str(tmp_path / "c")]
    )
    made = several(config, tmp_path / "out")
    assert made.metrics == {"named.x": "a", "named.y": "b", "listed.0": "c"}
    assert several(config, tmp_path / "out").cached
    (tmp_path / "b").write_text("changed")
    assert several(config, tmp_path / "out", replace=True).metrics["named.y"] == "changed"
    turned = dataclasses.replace(config, named=dict(reversed(config.named.items())))
    assert not several(turned, tmp_path / "out", replace=True).cached
    renamed = dataclasses.replace(config, named={"x": str(tmp_path / "a")})
    assert not several(renamed, tmp_path / "out", replace=True).cached

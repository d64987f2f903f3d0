"""How long `import lmworks` and `lmworks --help` take, beside an empty Python.

python bench/import_time.py
"""

from __future__ import annotations

import subprocess
import sys

from pairs import report, take_turns

ROUNDS = 15


def main() -> None:
    def run(*arguments: str):  # type: ignore[no-untyped-def]
        return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    seconds = take_turns(
        {
            "python -c pass": run("-c", "pass"),
            "import lmworks": run("-c", "import lmworks"),
            "lmworks --help": run("-m", "lmworks.cli.main", "--help"),
            "lmworks train pretrain --help": run(
                "-m", "lmworks.cli.main", "train", "pretrain", "-h"
            ),
        },
        ROUNDS,
    )
    report("import_time", "starts/s", 1.0, seconds)


if __name__ == "__main__":
    main()

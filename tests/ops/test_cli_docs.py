"""The page of commands is what the help texts say today."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_of_commands_is_fresh():
    script = ROOT / "tools" / "make_cli_docs.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_help_loads_nothing_heavy():
    """All help texts together: they stay quick only if no module behind them loads these."""
    code = (
        "import sys; sys.path.insert(0, 'tools'); import make_cli_docs; make_cli_docs.page(); "
        "print(sorted({'torch', 'transformers', 'numba', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.stdout == "[]\n", done.stderr

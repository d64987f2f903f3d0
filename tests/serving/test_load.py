"""The bench of a server under load, for twenty seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "serving_load.py"


@pytest.mark.slow
def test_nothing_is_lost_mixed_up_or_leaked(tmp_path):
    command = [sys.executable, str(BENCH), "--minutes", "0.34", "--streams", "40", "--no-record"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "nothing lost, mixed up or leaked" in done.stdout

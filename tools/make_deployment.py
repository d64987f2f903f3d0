"""The folder `deploy/` from the templates, so that it is what `lmworks deploy` writes.

python tools/make_deployment.py
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lmworks.ops.deployment import write_deployment

FOLDER = Path(__file__).parents[1] / "deploy"

if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    for path in write_deployment(FOLDER, ["smollm2-135m"], source=False):
        print(path.relative_to(FOLDER.parent))

"""What the page on positions asks for.

| path | |
|---|---|
| `POST /api/positions` | pictures and figures for some parameters, or of a loaded model |
| `GET /api/positions/runs` | finished runs of `eval positions` below the folder of the server |
| `POST /api/positions/export` | the page that `explain positions --out x.html` writes |

The same pictures as the command's; a picture is sent as bytes, -1 to 1 as 0 to 255.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from lmworks.core.stages import MANIFEST
from lmworks.serving.bodies import read_json
from lmworks.serving.openai_types import parse
from lmworks.studio.app import Studio

_QUESTION = 16 << 10
_DEEPEST, _MOST_RUNS, _MOST_BYTES = 3, 50, 4 << 20
_MOST_CELLS = 512


class PositionsRequest(BaseModel):
    """What to draw; `model` takes sizes from a loaded one and adds what it has learned."""

    model_config = ConfigDict(extra="forbid")
    length: int = Field(default=256, ge=2, le=4096)
    dimensions: int = Field(default=64, ge=4, le=512)
    heads: int = Field(default=8, ge=1, le=64)
    theta: float = Field(default=10000.0, gt=1, le=1e9)
    context: int = Field(default=128, ge=2, le=131072)
    factor: float = Field(default=4.0, ge=1, le=1024)
    model: str = Field(default="", max_length=1000)


class PositionRoutes:
    """The work behind the routes."""

    def __init__(self, studio: Studio, folder: Path) -> None:
        self.studio, self.folder = studio, folder

    def _drawn(self, request: PositionsRequest) -> tuple[Any, list[Any]]:
        from lmworks.evaluation import position_pictures

        values = request.model_dump(exclude={"model"})
        parameters, own = position_pictures.Parameters(**values), []
        if request.model:
            model = self.studio.models.get(request.model).model
            parameters = dataclasses.replace(
                position_pictures.model_parameters(model, request.length), factor=request.factor
            )
            own = position_pictures.model_pictures(model, request.length)
        return position_pictures.position_pictures(parameters), own

    def pictures(self, request: PositionsRequest) -> dict[str, Any]:
        """All of it. Raises: UserError for parameters that do not fit each other."""
        from lmworks.evaluation import position_pictures

        found, own = self._drawn(request)
        return position_pictures.plain(found) | {
            "own": [_picture(picture) for picture in own],
            "pictures": [_picture(picture) for picture in found.pictures],
        }

    def export(self, request: PositionsRequest) -> str:
        """The self-contained page."""
        from lmworks.evaluation import positions_page

        return positions_page.render(*self._drawn(request), request.model)

    def runs(self) -> list[dict[str, Any]]:
        """Reports of `eval positions` below the folder, the newest first."""
        found = []
        for depth in range(1, _DEEPEST + 1):
            for path in self.folder.glob("/".join(["*"] * depth + [MANIFEST])):
                if report := _report(path.parent):
                    name = str(path.parent.relative_to(self.folder))
                    found.append((path.stat().st_mtime, {"name": name, **report}))
        return [report for _, report in sorted(found, key=lambda e: e[0], reverse=True)][
            :_MOST_RUNS
        ]


def _report(folder: Path) -> dict[str, Any] | None:
    """A finished run's report, or None for a folder of something else, or damaged."""
    path = folder / "report.json"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest.get("stage") != "length_extrapolation" or path.stat().st_size > _MOST_BYTES:
            return None
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, AttributeError):
        return None
    is_one = isinstance(report, dict) and report.get("kind") == "length_extrapolation"
    return report if is_one else None


def _picture(picture: Any) -> dict[str, Any]:
    import numpy as np

    values = picture.values[:_MOST_CELLS, :_MOST_CELLS]
    scaled = np.clip(values / max(picture.high, -picture.low), -1, 1)
    return {
        "name": picture.name,
        "title": picture.title,
        "meaning": picture.meaning,
        "rows": picture.rows,
        "columns": picture.columns,
        "shape": list(values.shape),
        "most": max(picture.high, -picture.low),
        "image": base64.b64encode(
            np.rint((scaled + 1) * 127.5).astype(np.uint8).tobytes()
        ).decode(),
    }


def add_routes(app: FastAPI, studio: Studio) -> None:
    """Let `app` answer the page."""
    routes = PositionRoutes(studio, Path.cwd())

    @app.post("/api/positions")
    async def pictures(http: Request) -> Response:
        request = parse(PositionsRequest, await read_json(http, _QUESTION))
        return JSONResponse(await studio.work(routes.pictures, request))

    @app.get("/api/positions/runs")
    async def runs() -> Response:
        models = [entry["name"] for entry in studio.models.all()]
        return JSONResponse({"runs": await studio.work(routes.runs), "models": models})

    @app.post("/api/positions/export")
    async def export(http: Request) -> Response:
        request = parse(PositionsRequest, await read_json(http, _QUESTION))
        return HTMLResponse(await studio.work(routes.export, request))

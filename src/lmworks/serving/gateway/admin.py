"""Keys and usage over HTTP, for who holds an admin key. The command line does the same.

| path | |
|---|---|
| `GET`, `POST /admin/keys` | list; make one: `name`, `limits`, `models`, `days`, `admin` |
| `PATCH /admin/keys/ID` | change `name`, `limits` or `models` |
| `POST /admin/keys/ID/revoke`, `/rotate` | end it; give it another secret |
| `GET /admin/usage?days=30` | rows of day, key, model and back end |
| `GET /admin/requests?limit=100` | the request log |
| `GET /admin/backends` | who is up |
| `GET /admin/audit` | the audit log, and whether its chain is whole |

Every change, by whoever, is an entry of the audit log.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request

from lmworks.core.errors import UserError
from lmworks.serving.bodies import read_json
from lmworks.serving.errors import ApiError
from lmworks.serving.gateway.door import Door
from lmworks.serving.gateway.keys import Key
from lmworks.serving.gateway.office import Office

_MAX_BODY_BYTES = 1 << 20
_MAX_ROWS = 10_000


def add_admin_routes(app: FastAPI, door: Door) -> None:
    """Put the routes of `/admin` on `app`."""
    office = Office(door.gateway, door.store, door.ledger, door.pepper)

    async def admin(http: Request) -> Key:
        key = await door.key(http)
        if not key.admin:
            raise ApiError(403, "this needs an admin key", code="not_admin")
        return key

    async def values(http: Request) -> dict[str, Any]:
        body = await read_json(http, _MAX_BODY_BYTES)
        if not isinstance(body, dict):
            raise ApiError(400, "the body must be a JSON object", code="invalid_type")
        return body

    @app.get("/admin/keys")
    async def list_keys(http: Request) -> dict[str, Any]:
        await admin(http)
        return {"keys": [key.plain() for key in await office.keys()]}

    @app.post("/admin/keys")
    async def create_key(http: Request) -> dict[str, Any]:
        actor = await admin(http)
        text, key = await office.create(actor.id, **await values(http))
        return key.plain() | {"key": text}

    @app.patch("/admin/keys/{key_id}")
    async def change_key(http: Request, key_id: str) -> dict[str, Any]:
        actor = await admin(http)
        return (await office.change(actor.id, key_id, **await values(http))).plain()

    @app.post("/admin/keys/{key_id}/revoke")
    async def revoke_key(http: Request, key_id: str) -> dict[str, Any]:
        actor = await admin(http)
        return (await office.revoke(actor.id, key_id)).plain()

    @app.post("/admin/keys/{key_id}/rotate")
    async def rotate_key(http: Request, key_id: str) -> dict[str, Any]:
        actor = await admin(http)
        text, key = await office.rotate(actor.id, key_id)
        return key.plain() | {"key": text}

    @app.get("/admin/usage")
    async def usage(http: Request) -> dict[str, Any]:
        await admin(http)
        return {"usage": await office.usage(_number(http, "days", 30, 3660))}

    @app.get("/admin/requests")
    async def requests(http: Request) -> dict[str, Any]:
        await admin(http)
        return {"requests": office.requests(_number(http, "limit", 100, _MAX_ROWS))}

    @app.get("/admin/backends")
    async def backends(http: Request) -> dict[str, Any]:
        await admin(http)
        rows = [
            {
                "name": name,
                "available": backend.available,
                "healthy": backend.healthy,
                "breaker": backend.state,
                "in_flight": backend.in_flight,
                "requests": backend.requests,
                "failures": dict(backend.failures),
            }
            for name, backend in door.backends.items()
        ]
        return {"backends": rows}

    @app.get("/admin/audit")
    async def audit(http: Request) -> dict[str, Any]:
        await admin(http)
        entries, verdict = office.audit_entries(), office.verify_audit()
        rows = [
            {"number": e.number, "time": e.time_s, "actor": e.actor, "action": e.action}
            | {"details": e.details}
            for e in entries[-_MAX_ROWS:]
        ]
        return {"entries": rows, "head": verdict.head, "fault": verdict.fault}


def _number(http: Request, name: str, default: int, most: int) -> int:
    text = http.query_params.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= most:
        raise UserError(f"{name} must be a whole number from 1 to {most}, not {text[:40]!r}")
    return int(text)

"""Whether the back ends of a config can be reached, and know the models that it names."""

from __future__ import annotations

import asyncio
import json

from lmworks.serving.gateway.backends import Backend
from lmworks.serving.gateway.config import Gateway, api_key
from lmworks.serving.gateway.upstream import UpstreamFailure

_WAIT_S = 10.0
_LIST_BYTES = 8 << 20


async def unreachable(gateway: Gateway) -> list[str]:
    """One line per back end that can't be used as the config says."""
    faults = await asyncio.gather(
        *(_fault(gateway, name) for name, backend in gateway.backends.items() if backend.url)
    )
    return [fault for fault in faults if fault]


async def _fault(gateway: Gateway, name: str) -> str:
    config = gateway.backends[name]
    backend = Backend(name, config, gateway.settings.breaker, api_key(config, name))
    try:
        response = await backend.upstream.get("/models", _WAIT_S)
        body = await response.read(_LIST_BYTES)
        await response.close()
    except UpstreamFailure as failure:
        return str(failure)
    finally:
        await backend.close()
    if response.status != 200:
        return f"{name}: /models answered with status {response.status}"
    try:
        known = {str(entry["id"]) for entry in json.loads(body)["data"]}
    except (ValueError, KeyError, TypeError):
        return f"{name}: /models is no list of models: does its url end with /v1?"
    wanted = {r.model for m in gateway.models.values() for r in m.routes if r.backend == name}
    if missing := sorted(wanted - known):
        return f"{name}: has no {', '.join(missing)}; known: {', '.join(sorted(known)[:20])}"
    return ""

"""What admins do, by HTTP or on the command line: each change is written down in the audit log."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lmworks.core.errors import UserError, unknown_name
from lmworks.serving.gateway.audit import Entry, Verdict, verify
from lmworks.serving.gateway.config import Gateway
from lmworks.serving.gateway.keys import Key, new_key, rotated
from lmworks.serving.gateway.ledger import Ledger
from lmworks.serving.gateway.limits import Limits
from lmworks.serving.gateway.store import Store

_DAY_S = 86400


class Office:
    """Keys, usage and logs of one gateway."""

    def __init__(self, gateway: Gateway, store: Store, ledger: Ledger, pepper: bytes) -> None:
        self._gateway, self._store, self._ledger, self._pepper = gateway, store, ledger, pepper

    async def keys(self) -> list[Key]:
        """All keys."""
        return await self._ledger.list_keys()

    async def key(self, key_id: str) -> Key:
        """A key by its id, or by its name if only one has it. Raises: UserError."""
        if key := await self._ledger.find_key(key_id):
            return key
        keys = await self.keys()
        named = [key for key in keys if key.name == key_id and not key.revoked_s]
        if len(named) == 1:
            return named[0]
        if named:
            raise UserError(f"{len(named)} keys are called {key_id!r}: name one by its id")
        raise unknown_name("key", key_id[:80], [key.id for key in keys])

    async def create(
        self,
        actor: str,
        /,
        name: Any = "",
        limits: Any = None,
        models: Any = (),
        days: Any = 0,
        admin: Any = False,
        **unknown: Any,
    ) -> tuple[str, Key]:
        """A new key: what is shown once, and what is kept. Raises: UserError."""
        _no_more(unknown)
        if not isinstance(name, str) or not isinstance(admin, bool):
            raise UserError("name must be a text, admin true or false")
        if isinstance(days, bool) or not isinstance(days, int | float) or not 0 <= days < 36500:
            raise UserError(f"days = {str(days)[:40]}: for how many days the key is to be good")
        text, key = new_key(
            self._pepper,
            name,
            limits=Limits.of(limits or {}),
            models=self._models(models),
            expires_s=time.time() + days * _DAY_S if days else 0.0,
            admin=admin,
        )
        await self._keep(actor, "create key", key, {})
        return text, key

    async def change(
        self,
        actor: str,
        key_id: str,
        /,
        name: Any = None,
        limits: Any = None,
        models: Any = None,
        **unknown: Any,
    ) -> Key:
        """Change what a key is called and may use; what is not given stays. Raises: UserError."""
        _no_more(unknown)
        key = await self.key(key_id)
        changes: dict[str, Any] = {}
        if name is not None:
            if not isinstance(name, str) or not 1 <= len(name) <= 80 or not name.isprintable():
                raise UserError("name must be a text of 1 to 80 printable characters")
            changes["name"] = name
        if limits is not None:
            if not isinstance(limits, Mapping):
                raise UserError("limits must be an object; null takes a limit away")
            changes["limits"] = Limits.of({**key.limits.plain(), **limits})
        if models is not None:
            changes["models"] = self._models(models)
        changed = dataclasses.replace(key, **changes)
        await self._keep(actor, "change key", changed, {"changed": sorted(changes)})
        return changed

    async def revoke(self, actor: str, key_id: str) -> Key:
        """End a key, from the next request on."""
        key = await self.key(key_id)
        ended = dataclasses.replace(key, revoked_s=key.revoked_s or time.time())
        await self._keep(actor, "revoke key", ended, {})
        return ended

    async def rotate(self, actor: str, key_id: str) -> tuple[str, Key]:
        """Another secret; the old one ends at once. Raises: UserError for a revoked key."""
        key = await self.key(key_id)
        if key.revoked_s:
            raise UserError(f"the key {key.id} was revoked: create a new one")
        text, changed = rotated(self._pepper, key)
        await self._keep(actor, "rotate key", changed, {})
        return text, changed

    async def usage(self, days: int) -> list[dict[str, Any]]:
        """Rows of the last days, with the names of keys."""
        since = time.strftime("%Y-%m-%d", time.gmtime(time.time() - (days - 1) * _DAY_S))
        names = {key.id: key.name for key in await self.keys()}
        rows = await self._ledger.usage(since)
        return [{**row, "key": names.get(row["key_id"], "")} for row in rows]

    def requests(self, limit: int) -> list[dict[str, Any]]:
        """The newest entries of the request log."""
        return self._store.rows("SELECT * FROM requests ORDER BY time_s DESC LIMIT ?", (limit,))

    def audit_entries(self) -> list[Entry]:
        """The audit log."""
        return self._store.audit_entries()

    def verify_audit(self, head: str = "") -> Verdict:
        """Whether its chain is whole; see `audit.verify`."""
        return verify(self._pepper, self.audit_entries(), head)

    async def close(self) -> None:
        """Close the connections of the ledger."""
        await self._ledger.close()

    def _models(self, models: Any) -> tuple[str, ...]:
        if not isinstance(models, Sequence) or isinstance(models, str):
            raise UserError("models must be a list of names")
        for name in models:
            if name not in self._gateway.models:
                raise unknown_name("model", str(name)[:80], self._gateway.models)
        return tuple(dict.fromkeys(models))

    async def _keep(self, actor: str, action: str, key: Key, details: Mapping[str, Any]) -> None:
        """Written down first: a change that is in no log must not be possible."""
        told: dict[str, Any] = {"key": key.id, "name": key.name, "limits": key.limits.plain()}
        told |= {"models": list(key.models), "admin": key.admin}
        self._store.audit(self._pepper, actor, action, {**told, **details})
        await self._ledger.put_key(key)


def _no_more(unknown: Mapping[str, Any]) -> None:
    if unknown:
        known = ["name", "limits", "models", "days", "admin"]
        raise unknown_name("setting", str(next(iter(unknown)))[:80], known)

"""Keys of clients: made, shown once, kept as a hash, compared in constant time.

A key is `lmw_ID_SECRET`. The id is public: it stands in logs and finds the row. The secret is 256
bits from the system's generator, of which HMAC-SHA256 under a pepper is kept. A slow hash, as for
passwords, would buy nothing: nobody can go through 2^256 secrets however fast one is tried, and it
would cost every request some 100 ms. A salt would buy nothing either, since no two secrets are
equal. The pepper lies outside the database, so that who can write to that can't add a key.

An unknown id is compared too, against a hash that nothing has, so that it takes the same time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import os
import re
import secrets
import time
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.serving.gateway.limits import Limits

_KEY = re.compile(r"lmw_([0-9a-f]{12})_([0-9a-f]{64})")
_NO_HASH = bytes(32)
MIN_PEPPER_BYTES = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """What is kept of a key.

    Attributes:
        models: names that it may use; empty: all.
        admin: may use the admin API, and no model.
        expires_s, revoked_s: Unix times; 0: never, not.
    """

    id: str
    name: str
    hash: bytes
    created_s: float
    expires_s: float = 0.0
    revoked_s: float = 0.0
    admin: bool = False
    models: tuple[str, ...] = ()
    limits: Limits = dataclasses.field(default_factory=Limits)

    def state(self, now_s: float) -> str:
        """active, expired or revoked."""
        if self.revoked_s:
            return "revoked"
        return "expired" if self.expires_s and now_s >= self.expires_s else "active"

    def may_use(self, model: str) -> bool:
        """Whether the allowlist has it."""
        return not self.admin and (not self.models or model in self.models)

    def plain(self) -> dict[str, Any]:
        """What may be shown of it: no hash."""
        return {
            "id": self.id,
            "name": self.name,
            "state": self.state(time.time()),
            "admin": self.admin,
            "created": int(self.created_s),
            "expires": int(self.expires_s) or None,
            "revoked": int(self.revoked_s) or None,
            "models": list(self.models),
            "limits": self.limits.plain(),
        }


def new_key(
    pepper: bytes,
    name: str,
    *,
    limits: Limits | None = None,
    models: tuple[str, ...] = (),
    expires_s: float = 0.0,
    admin: bool = False,
) -> tuple[str, Key]:
    """A new key: what is shown once, and what is kept."""
    if not re.fullmatch(r"[^\x00-\x1f\x7f]{1,80}", name) or name != name.strip():
        raise UserError(f"a key's name has 1 to 80 printable characters, not {name[:90]!r}")
    key_id, secret = secrets.token_hex(6), secrets.token_hex(32)
    kept = Key(
        id=key_id,
        name=name,
        hash=hash_secret(pepper, key_id, secret),
        created_s=time.time(),
        expires_s=expires_s,
        admin=admin,
        models=models,
        limits=limits or Limits(),
    )
    return f"lmw_{key_id}_{secret}", kept


def rotated(pepper: bytes, key: Key) -> tuple[str, Key]:
    """The same key with another secret; the id stays, and with it limits and what was used."""
    secret = secrets.token_hex(32)
    kept = dataclasses.replace(key, hash=hash_secret(pepper, key.id, secret), revoked_s=0.0)
    return f"lmw_{key.id}_{secret}", kept


def hash_secret(pepper: bytes, key_id: str, secret: str) -> bytes:
    """HMAC-SHA256 over id and secret."""
    return hmac.digest(pepper, f"{key_id}:{secret}".encode(), hashlib.sha256)


def split_key(text: str) -> tuple[str, str] | None:
    """(id, secret) of what looks like a key."""
    found = _KEY.fullmatch(text)
    return (found[1], found[2]) if found else None


def is_right(pepper: bytes, key_id: str, secret: str, key: Key | None) -> bool:
    """Whether the secret is that of `key`; the same work is done for a key that is not there."""
    given = hash_secret(pepper, key_id, secret)
    same = hmac.compare_digest(given, key.hash if key else _NO_HASH)
    return same and key is not None


def load_pepper(variable: str, beside: Path) -> bytes:
    """The pepper: out of the environment, else out of a file that is made at the first use.

    Args:
        variable: name of the environment variable.
        beside: the store; the file is called like it, with `.secret`, and is its owner's only.
    Raises: UserError for a pepper that is too short, or a file that can't be read or made.
    """
    if value := os.environ.get(variable, ""):
        if len(value.encode()) < MIN_PEPPER_BYTES:
            raise UserError(f"{variable} is too short: at least {MIN_PEPPER_BYTES} bytes")
        return value.encode()
    path = beside.with_suffix(".secret")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two processes may start at the same time: the one that links first wins for both.
        if not path.exists():
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
            temporary.unlink()
        pepper = path.read_text().strip().encode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the gateway's secret {path} can't be read or made: {error}") from error
    if len(pepper) < MIN_PEPPER_BYTES:
        raise UserError(f"{path} is too short for a secret: restore it, or every key must be new")
    return pepper

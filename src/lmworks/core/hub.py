"""`hf:org/name`: files of a Hugging Face repository, kept in that project's own cache.

`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean there.
"""

from __future__ import annotations

import functools
import os
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

from lmworks.core.errors import UserError

_CONNECT_TIMEOUT_S = 3.0
# Weights in the safe formats, and the text files around them. Pickles are never fetched.
_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")


def fetch_repository(name: str) -> Path:
    """The local folder of a hub repository (`org/name` or `org/name@revision`).

    Raises: UserError when the hub can't be reached and the repository is not cached, when it
        does not exist, or when it needs a token.
    """
    repository, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or ".." in revision:
        raise _malformed(name)
    offline = not hub_reachable()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        folder = Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=list(_PATTERNS),
                local_files_only=offline,
            )
        )
    except HFValidationError as error:
        raise _malformed(name) from error
    except LocalEntryNotFoundError as error:
        # huggingface_hub also ends here after a status that it has no own error for.
        answer = getattr(error.__cause__, "response", None)
        reason = "is not reachable" if answer is None else f"answered {answer.status_code}"
        raise UserError(f"hf:{name}: the hub {reason} and this is not in its cache") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise UserError(
                f"hf:{name}: does not exist, or needs a token (set HF_TOKEN)"
            ) from error
        if status == 404:
            raise UserError(f"hf:{name}: does not exist on the hub") from error
        raise UserError(f"hf:{name}: the hub answered with status {status}") from error
    except OSError as error:
        raise UserError(
            f"hf:{name}: the download failed: {type(error).__name__}: {error}"
        ) from error
    if not folder.is_dir() or not any(folder.iterdir()):
        raise UserError(f"hf:{name}: holds no safetensors, tokenizer or config files")
    return folder


def _malformed(name: str) -> UserError:
    return UserError(
        f"hf:{name}: write it as hf:organisation/name or hf:organisation/name@revision"
    )


@functools.cache
def hub_reachable() -> bool:
    """Whether the hub's host answers; asked once per process, within seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    url = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        port = url.port or (443 if url.scheme == "https" else 80)
    except ValueError as error:
        raise UserError(f"HF_ENDPOINT has no port that can be read: {url.netloc!r}") from error
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True  # a proxy resolves names for us: only a real request can tell
    try:
        socket.create_connection((url.hostname or "", port), _CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True

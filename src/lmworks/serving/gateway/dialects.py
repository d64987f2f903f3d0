"""The APIs that back ends speak. Clients always speak OpenAI's; for others it is translated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from lmworks.core.tables import look_up

DIALECTS: dict[str, str] = {
    "openai": "lmworks.serving.gateway.dialects:OpenAI",
    "anthropic": "lmworks.serving.gateway.anthropic:Anthropic",
}


class EventTranslator(Protocol):
    """Turns the events of one streamed answer into OpenAI's."""

    def feed(self, event: bytes) -> list[bytes]:
        """The events that stand for one. Raises: ValueError for one that can't be understood."""
        ...


class Dialect(Protocol):
    """How to ask in an API, and how to read its answers."""

    def headers(self, api_key: str) -> dict[str, str]:
        """Those that every request carries."""
        ...

    def ask(self, path: str, body: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Path below `/v1` and body. Raises: ApiError for what can't be asked there."""
        ...

    def whole(self, answer: Any) -> Any:
        """An answer as OpenAI's; the same object if nothing is to be done. Raises: ValueError."""
        ...

    def translator(self) -> EventTranslator | None:
        """For one streamed answer; None where events pass as they are."""
        ...


class OpenAI:
    """Nothing is translated."""

    def headers(self, api_key: str) -> dict[str, str]:
        """The bearer token."""
        return {"authorization": f"Bearer {api_key}"} if api_key else {}

    def ask(self, path: str, body: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """As it is."""
        return path, body

    def whole(self, answer: Any) -> Any:
        """As it is."""
        return answer

    def translator(self) -> EventTranslator | None:
        """None."""
        return None


def dialect(kind: str) -> Dialect:
    """The dialect of a name. Raises: UserError."""
    made: Dialect = look_up(DIALECTS, kind, seam="dialect")()
    return made

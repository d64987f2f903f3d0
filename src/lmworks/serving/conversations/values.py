"""What the store gives: conversations, messages, and how a conversation is set."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from lmworks.core.config import from_mapping, lay_over, to_mapping
from lmworks.core.errors import UserError
from lmworks.inference.memory import MemorySettings

Role = Literal["user", "assistant"]
# writing: an answer under way. cut: its writer died. stopped: the person ended it. failed: an error
# did; what came before is kept in each case.
State = Literal["whole", "writing", "stopped", "cut", "failed"]
_LONGEST_TITLE = 60


class NotFound(UserError):
    """No such conversation, message, attachment or prompt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """What a conversation is held with; unknown names and bad values are refused when read."""

    model: str = ""  # empty: the first that is served
    system: str = ""
    temperature: float = 0.7
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 512
    seed: int | None = None
    memory: MemorySettings = dataclasses.field(default_factory=MemorySettings)

    def sampling(self) -> dict[str, Any]:
        """As `ChatModel.stream` takes it; what would change nothing is left out."""
        chosen: dict[str, Any] = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        if self.top_p != 1.0:
            chosen["top_p"] = self.top_p
        if self.min_p:
            chosen["min_p"] = self.min_p
        if self.seed is not None:
            chosen["seed"] = self.seed
        return chosen

    def changed(self, values: Mapping[str, Any]) -> ChatSettings:
        """With other values, nested ones (`memory`) one by one.

        Raises: UserError for an unknown name or a bad value.
        """
        from lmworks.inference.sampling import Sampling

        merged = lay_over(to_mapping(self), values)
        made = from_mapping(ChatSettings, merged, where="settings")
        Sampling.of(made.sampling())
        return made


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attachment:
    """A file that came with a message, as text."""

    id: str
    name: str
    kind: str  # the ending of its name, without the dot
    num_bytes: int
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
    """One message of the tree. `parent_id` is None for one that a conversation begins with."""

    id: str
    conversation_id: str
    parent_id: str | None
    active_child: str | None  # the child on the branch that was looked at last
    role: Role
    content: str
    state: State
    model: str
    info: dict[str, Any]  # figures, the error, what the model was sent
    created_s: float
    attachment_ids: tuple[str, ...] = ()

    def described(self) -> dict[str, Any]:
        """The fields that leave as they are: to the page, and into a file."""
        return {
            "id": self.id,
            "parent_id": self.parent_id,
            "active_child": self.active_child,
            "role": self.role,
            "content": self.content,
            "state": self.state,
            "model": self.model,
            "created_s": self.created_s,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversation:
    """One conversation, without its messages."""

    id: str
    title: str
    settings: ChatSettings
    active_root: str | None
    created_s: float
    changed_s: float
    deleted: bool = False


def title_of(text: str) -> str:
    """A title out of a first message: its first line, cut at a word."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    line = re.sub(r"[\s\x00-\x1f\x7f]+", " ", line).strip().lstrip("#>*- ") or "New chat"
    if len(line) <= _LONGEST_TITLE:
        return line
    cut = line[:_LONGEST_TITLE].rsplit(" ", 1)[0]
    return cut.rstrip(" ,;:.") + "…"


def branch(messages: list[Message], leaf: str | None) -> list[Message]:
    """The messages from the first to `leaf`. Raises: NotFound for a leaf that is not among them."""
    by_id = {message.id: message for message in messages}
    found: list[Message] = []
    while leaf is not None:
        if leaf not in by_id:
            raise NotFound(f"no message {leaf!r} in this conversation")
        found.append(by_id[leaf])
        leaf = by_id[leaf].parent_id
    return found[::-1]


def active_leaf(messages: list[Message], root: str | None) -> str | None:
    """The end of the branch that was looked at last."""
    by_id = {message.id: message for message in messages}
    while root is not None and (below := by_id[root].active_child) is not None:
        root = below
    return root

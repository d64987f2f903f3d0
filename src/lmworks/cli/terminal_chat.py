"""The terminal's chat: what is typed becomes a message or a command, answers stream to the screen.

It stands on what the page stands on: the same store, the same memory. With a pipe for an input it
prints answers and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import click

from lmworks.core.errors import UserError
from lmworks.inference.base import ChatModel
from lmworks.inference.memory_recall import LazyEncoder
from lmworks.serving.conversations.answers import (
    failure_line,
    plan_answer,
    remember,
    write_answer,
)
from lmworks.serving.conversations.store import ConversationStore
from lmworks.serving.conversations.values import Attachment, ChatSettings, Conversation, Message


class TerminalChat:
    """One person at a terminal.

    Args:
        load: gives the model for a reference.
        encoder: a sentence encoder, for recall by meaning.
    """

    def __init__(
        self, store: ConversationStore, *, load: Callable[[str], ChatModel], encoder: str = ""
    ) -> None:
        self.store, self.load = store, load
        self.encoder = LazyEncoder(encoder) if encoder else None
        self.settings = ChatSettings()
        self.conversation: Conversation | None = None
        self.attached: list[Attachment] = []
        self.deleted = ""
        self.is_terminal = sys.stdin.isatty()
        self._model: ChatModel | None = None

    # --- what commands do ---

    @property
    def model(self) -> ChatModel:
        """The model that answers."""
        assert self._model is not None  # `use_model` comes first
        return self._model

    def use_model(self, model: ChatModel, name: str) -> None:
        """Answer with this one from now on."""
        if self._model is not None and (close := getattr(self._model, "close", None)):
            close()
        self._model = model
        self._change(dataclasses.replace(self.settings, model=name))

    def set(self, **values: Any) -> None:
        """Change settings. Raises: UserError for an unknown name or a bad value."""
        memory = {
            own: values.pop(name)
            for name, own in (
                ("recall", "recall"),
                ("summary", "summary"),
                ("context", "context_tokens"),
            )
            if name in values
        }
        self._change(self.settings.changed(values | ({"memory": memory} if memory else {})))

    def _change(self, settings: ChatSettings) -> None:
        self.settings = settings
        if self.conversation is not None:
            self.conversation = self.store.set(self.conversation.id, settings=settings)

    def resume(self, which: str) -> None:
        """Go to a conversation: an id, its beginning, or `last`. Raises: UserError."""
        known = self.store.recent()
        if which == "last":
            if not known:
                raise UserError("no conversation to go on with: start one without --resume")
            found = known[:1]
        else:
            found = [each for each in known if each.id.startswith(which)]
        if len(found) != 1:
            count = "no conversation begins" if not found else f"{len(found)} conversations begin"
            raise UserError(f"{count} with {which!r}: /list shows their ids")
        model = self.settings.model
        self.conversation = found[0]
        self.settings = dataclasses.replace(found[0].settings, model=model)

    def path(self) -> list[Message]:
        """The active branch."""
        return self.store.path(self.conversation.id) if self.conversation else []

    def attach(self, name: str, data: bytes) -> Attachment:
        """A file for the next message. Raises: UserError when it can't be read."""
        self.attached.append(self.store.attachments.add(name, data))
        return self.attached[-1]

    def start_new(self) -> None:
        """Begin another conversation with the next message."""
        self.conversation = None
        self.attached = []

    # --- asking ---

    def ask(self, content: str) -> None:
        """Add a question and answer it."""
        if self.conversation is None:
            self.conversation = self.store.create(settings=self.settings)
        attachments = [found.id for found in self.attached]
        self.attached = []
        question = self.store.add(self.conversation.id, "user", content, attachments=attachments)
        self.answer(question)

    def answer(self, question: Message) -> None:
        """Answer a question that is stored. Ctrl-C ends the answer and keeps what there is."""
        answer = self.store.add(
            question.conversation_id,
            "assistant",
            "",
            parent=question.id,
            state="writing",
            model=self.settings.model,
        )
        path = self.store.path(question.conversation_id, question.id)
        try:
            plan = plan_answer(self.store, path, self.model, self.settings, self.encoder)
        except BaseException as error:
            told = failure_line(error) if isinstance(error, Exception) else "stopped"
            self.store.save(answer.id, "", "failed", {"error": told})
            raise
        deltas = write_answer(self.store, answer.id, self.model, plan, self.settings)
        try:
            for delta in deltas:
                click.echo(delta.text, nl=False)
        except KeyboardInterrupt:
            click.echo(" [stopped]", nl=False)
        finally:
            deltas.close()  # type: ignore[attr-defined]
            click.echo()
        if self.is_terminal:
            self._figures(self.store.message(answer.id))
            self._remember(answer)

    def _figures(self, answer: Message) -> None:
        info = answer.info
        parts = [f"{info.get('completion_tokens', 0)} tokens"]
        if "tokens_per_s" in info:
            parts.append(f"{info['tokens_per_s']:.1f} tokens/s")
        memory = info.get("memory", {})
        left = memory.get("num_left_out", 0)
        if left:
            recalled = sum(part["kind"] == "recalled" for part in memory["parts"])
            parts.append(f"{left} messages left out, {recalled} passages recalled: /memory")
        click.secho("  " + ", ".join(parts), dim=True, err=True)

    def _remember(self, answer: Message) -> None:
        if not self.settings.memory.summary:
            return
        model, settings = self.model, self.settings

        def work() -> None:
            with contextlib.suppress(Exception):  # the next answer tries again
                path = self.store.path(answer.conversation_id, answer.id)
                remember(self.store, path, model, settings)

        threading.Thread(target=work, name="lmworks-notes", daemon=True).start()

    # --- the loop ---

    def run(self) -> None:
        """Until /exit, Ctrl-D or the end of the input."""
        from lmworks.cli.terminal_commands import run_command
        from lmworks.cli.terminal_input import TerminalInput

        reading = TerminalInput(self.is_terminal, keep=self.store.database.path is not None)
        if self.is_terminal:
            self._greet()
        while (text := reading.message()) is not None:
            try:
                if text.startswith("/") and not text.startswith("//"):
                    if not run_command(self, reading, text):
                        return
                elif text:
                    self.ask(text.removeprefix("/") if text.startswith("//") else text)
            except UserError as error:
                if not self.is_terminal:
                    raise
                click.secho(str(error), fg="red", err=True)
            except KeyboardInterrupt:
                click.echo("[stopped]", err=True)

    def _greet(self) -> None:
        title = self.conversation.title if self.conversation else ""
        if title:
            click.secho(f"Going on with: {title}", dim=True, err=True)
            show(self.path()[-2:])
        click.secho("/help lists the commands, Ctrl-D leaves.", dim=True, err=True)


def show(messages: Sequence[Message], start: int = 1) -> None:
    """Print messages, with their numbers."""
    for number, message in enumerate(messages, start):
        who = "you" if message.role == "user" else message.model or "model"
        state = "" if message.state == "whole" else f" ({message.state})"
        click.secho(f"[{number}] {who}{state}", bold=True)
        click.echo(printable(message.content) or "(nothing)")


def printable(text: str) -> str:
    """A stored text without what would steer the terminal."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")

"""Files that come with messages: read by the readers of `lmworks.data`, kept as text.

What is in them is material from elsewhere. It is sent to the model between marks that it can't
forge (`inference.memory`), nothing in it is run or fetched, and its size is limited before it is
read. Left out: images and sound, which the models served here can't read; that is said.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import PurePosixPath, PureWindowsPath

from lmworks.core.errors import UserError
from lmworks.data.readers.base import READERS, Unreadable
from lmworks.serving.conversations.database import Database
from lmworks.serving.conversations.values import Attachment, NotFound

MAX_ATTACHMENT_BYTES = 16 << 20
MAX_ATTACHMENT_CHARACTERS = 2_000_000
MAX_ATTACHMENTS = 16  # of one message
_UNSENT_S = 86400.0  # what was uploaded and not sent for so long is dropped
_LONGEST_NAME = 120
# Read as they are: what a person asks about is their structure.
_AS_TEXT_ENDINGS = ".json .jsonl .csv .tsv .xml .yaml .yml .toml .ini .cfg .conf .srt .vtt"
_AS_TEXT = frozenset(_AS_TEXT_ENDINGS.split())
_PICTURES = (
    (b"\x89PNG\r\n\x1a\n", 0),
    (b"\xff\xd8\xff", 0),
    (b"GIF8", 0),
    (b"WEBP", 8),
    (b"ftypavif", 4),
    (b"ftypheic", 4),
    (b"BM", 0),
)
_PICTURES_END = ".png .jpg .jpeg .gif .webp .avif .heic .bmp .tif .tiff"
_PICTURE_ENDINGS = frozenset(_PICTURES_END.split())
_SOUNDS_END = ".mp3 .wav .flac .ogg .m4a .mp4 .mov .mkv .webm .avi"
_SOUND_ENDINGS = frozenset(_SOUNDS_END.split())


def read_attachment(name: str, data: bytes) -> Attachment:
    """A file's text.

    Raises: UserError saying why it can't be had: too large, a picture, no reader, broken, empty.
    """
    name = file_name(name)
    path = PurePosixPath(name)
    ending = path.suffix.lower()
    if not data:
        raise UserError(f"{name} is empty")
    if len(data) > MAX_ATTACHMENT_BYTES:
        raise UserError(f"{name} is over {MAX_ATTACHMENT_BYTES >> 20} MB: attach a part of it")
    _refuse_other_senses(name, ending, data)
    try:
        text = _read(path, ending, data)
    except Unreadable as error:
        raise UserError(f"{name} can't be read: {error}") from error
    text = text.strip("\n")
    if not text.strip():
        raise UserError(f"{name} holds no text")
    if len(text) > MAX_ATTACHMENT_CHARACTERS:
        raise UserError(
            f"{name} holds {len(text):,} characters, {MAX_ATTACHMENT_CHARACTERS:,} are the most: "
            "attach a part of it"
        )
    return Attachment(
        id=secrets.token_hex(8),
        name=name,
        kind=ending.lstrip(".") or "txt",
        num_bytes=len(data),
        text=text,
    )


def file_name(name: str) -> str:
    """The last part of a name as a browser or a person gives it, without what could harm a page or
    a terminal."""
    last = PurePosixPath(PureWindowsPath(name).name).name
    last = "".join(c for c in last if c.isprintable()).strip() or "attachment.txt"
    if len(last) <= _LONGEST_NAME:
        return last
    ending = PurePosixPath(last).suffix[:12]
    return last[: _LONGEST_NAME - len(ending)] + ending


def _refuse_other_senses(name: str, ending: str, data: bytes) -> None:
    head = data[:32]
    is_picture = any(head[at : at + len(mark)] == mark for mark, at in _PICTURES)
    if ending in _PICTURE_ENDINGS or (is_picture and ending not in READERS):
        raise UserError(f"{name} is a picture: the models here read text only")
    if ending in _SOUND_ENDINGS:
        raise UserError(f"{name} is sound or film: the models here read text only")


def _read(path: PurePosixPath, ending: str, data: bytes) -> str:
    from pathlib import Path

    from lmworks.data.readers.base import reader_for
    from lmworks.data.readers.text import decode

    reader = None if ending in _AS_TEXT else reader_for(Path(path))
    if reader is not None:
        return reader(Path(path), data).text
    try:
        return decode(data)  # of an unknown kind: taken if it is text
    except Unreadable as error:
        known = ", ".join(sorted({"pdf", "html", "docx", "pptx", "xlsx", "odt", "md", "txt"}))
        raise Unreadable("unknown", f"neither text nor a kind that is known: {known}") from error


class Attachments:
    """The attachments of a store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, name: str, data: bytes) -> Attachment:
        """Read a file and keep it, to be sent with a message. Raises: as `read_attachment`."""
        return self.keep(read_attachment(name, data))

    def keep(self, attachment: Attachment) -> Attachment:
        """Keep one that was read before."""
        with self._database.change() as connection:
            connection.execute(
                "INSERT INTO attachments VALUES (?, ?, ?, ?, ?, ?)",
                (
                    *(attachment.id, attachment.name, attachment.kind),
                    *(attachment.num_bytes, attachment.text, time.time()),
                ),
            )
        return attachment

    def get(self, attachment_id: str) -> Attachment:
        """One attachment. Raises: NotFound."""
        row = self._database.row("SELECT * FROM attachments WHERE id = ?", attachment_id)
        if row is None:
            raise NotFound(f"no attachment {attachment_id!r}: attach the file again")
        return Attachment(
            id=row["id"],
            name=row["name"],
            kind=row["kind"],
            num_bytes=row["num_bytes"],
            text=row["text"],
        )

    def attach(self, message_id: str, attachment_ids: Sequence[str]) -> None:
        """Join attachments to a message. Raises: NotFound; UserError for too many."""
        if len(attachment_ids) > MAX_ATTACHMENTS:
            raise UserError(f"a message has at most {MAX_ATTACHMENTS} attachments")
        with self._database.change() as connection:
            for position, attachment_id in enumerate(attachment_ids):
                self.get(attachment_id)
                connection.execute(
                    "INSERT INTO message_attachments VALUES (?, ?, ?)",
                    (message_id, attachment_id, position),
                )

    def of_conversation(self, conversation_id: str) -> list[str]:
        """The ids of all attachments of a conversation."""
        rows = self._database.rows(
            "SELECT DISTINCT attachment_id FROM message_attachments JOIN messages ON "
            "messages.id = message_id WHERE conversation_id = ?",
            conversation_id,
        )
        return [row["attachment_id"] for row in rows]

    def forget_unused(self, attachment_ids: Sequence[str] | None = None) -> None:
        """Drop those that no message has: of the given ones, or all that wait since a day."""
        unused = "id NOT IN (SELECT attachment_id FROM message_attachments)"
        with self._database.change() as connection:
            if attachment_ids is None:
                connection.execute(
                    f"DELETE FROM attachments WHERE {unused} AND created_s < ?",
                    (time.time() - _UNSENT_S,),
                )
            for attachment_id in attachment_ids or ():
                connection.execute(
                    f"DELETE FROM attachments WHERE id = ? AND {unused}", (attachment_id,)
                )

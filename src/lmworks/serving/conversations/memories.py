"""What was made of conversations to remember them by: summaries, and vectors of passages.

A summary belongs to the last message that it covers, so that all branches that go through that
message share it. Vectors belong to a text, whatever branch it stands on. Both go when their
conversation goes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lmworks.inference.memory import Summary
from lmworks.serving.conversations.database import Database

if TYPE_CHECKING:
    import numpy as np


class Memories:
    """See the module."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def keep_summary(self, summary: Summary, model: str) -> None:
        """Store what the model made of a branch up to `summary.upto_id`."""
        with self._database.change() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO summaries VALUES (?, ?, ?, ?)",
                (summary.upto_id, summary.text, model, time.time()),
            )

    def summary(self, message_ids: Sequence[str]) -> Summary | None:
        """The summary that covers most of a branch, given from its first message on."""
        marks = ",".join("?" * len(message_ids))
        rows = self._database.rows(
            f"SELECT message_id, text FROM summaries WHERE message_id IN ({marks})", *message_ids
        )
        texts = {row["message_id"]: row["text"] for row in rows}
        last = next((known for known in reversed(message_ids) if known in texts), None)
        return None if last is None else Summary(upto_id=last, text=texts[last])

    def vectors(self, conversation_id: str) -> VectorsOf:
        """The vectors of a conversation, by encoder and text."""
        return VectorsOf(self._database, conversation_id)


class VectorsOf:
    """Vectors that were computed before; a `VectorCache` of `inference.memory_recall`."""

    def __init__(self, database: Database, conversation_id: str) -> None:
        self._database, self._conversation_id = database, conversation_id

    def get(self, encoder: str, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Those of `keys` that are known, float32 (D,)."""
        import numpy as np

        rows = self._database.rows(
            "SELECT key, vector FROM vectors WHERE conversation_id = ? AND encoder = ?",
            self._conversation_id,
            encoder,
        )
        wanted = set(keys)
        return {
            row["key"]: np.frombuffer(row["vector"], dtype=np.float32)
            for row in rows
            if row["key"] in wanted
        }

    def put(self, encoder: str, vectors: Mapping[str, np.ndarray]) -> None:
        """Keep more."""
        with self._database.change() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)",
                [
                    (self._conversation_id, encoder, key, vector.astype("float32").tobytes())
                    for key, vector in vectors.items()
                ],
            )

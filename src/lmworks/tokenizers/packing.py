"""Documents into sequences of one length, with the borders between them kept.

| strategy | what it does | price |
|---|---|---|
| `concatenate` | one long stream, cut every `length` tokens | most documents at a border are cut |
| `first-fit-decreasing` | longest first, into the first sequence with room | a little padding |
| `best-fit` | longest first, into the sequence that it fills best | a little padding |

The last two cut only documents that are longer than a sequence, into whole sequences and a rest.
Each takes O(n log n) for n documents, and gives the same result for the same lengths.

Where documents end inside of a sequence is told as `cu_seqlens` (what attention over packed rows
takes) and as position ids, so that training can keep documents from seeing each other.

Source: Ding et al. 2024, arXiv 2404.10830, section 3 (best-fit packing); Johnson 1973 (first fit).
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lmworks.core.errors import UserError
from lmworks.core.tables import look_up

if TYPE_CHECKING:
    import numpy as np

PACKERS: dict[str, str] = {
    "concatenate": "lmworks.tokenizers.packing:concatenate",
    "first-fit-decreasing": "lmworks.tokenizers.packing:first_fit_decreasing",
    "best-fit": "lmworks.tokenizers.packing:best_fit",
}


class Piece(NamedTuple):
    """Tokens `start` up to `stop` of a document."""

    document: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Tokens."""
        return self.stop - self.start


Sequences = list[list[Piece]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packing:
    """Which pieces stand in which sequence, one behind the other; the rest of it is padding."""

    length: int  # T, tokens of a sequence
    sequences: Sequences

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return sum(piece.size for pieces in self.sequences for piece in pieces)

    @property
    def padding_share(self) -> float:
        """Of all places, those that hold no token."""
        places = self.length * len(self.sequences)
        return 1 - self.num_tokens / places if places else 0.0

    @property
    def documents_cut(self) -> int:
        """Documents that are in more than one piece."""
        pieces = [piece for sequence in self.sequences for piece in sequence]
        return len({piece.document for piece in pieces if piece.start})

    def cu_seqlens(self, sequence: int) -> list[int]:
        """Borders in a sequence, from 0 to its last token; padding is no document."""
        ends = [0]
        for piece in self.sequences[sequence]:
            ends.append(ends[-1] + piece.size)
        return ends

    def fill(
        self, documents: Sequence[Sequence[int] | np.ndarray], *, pad: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each sequence's (ids, position ids), int32 (T,); positions begin anew in each piece.

        Args:
            documents: ids of each, as long as the packing was made for.
            pad: the id of padding; its positions go on from 0.
        """
        import numpy as np

        for pieces in self.sequences:
            ids = np.full(self.length, pad, dtype=np.int32)
            positions = np.zeros(self.length, dtype=np.int32)
            at = 0
            for document, start, stop in pieces:
                end = at + stop - start
                ids[at:end] = documents[document][start:stop]
                positions[at:end] = np.arange(end - at)
                at = end
            positions[at:] = np.arange(self.length - at)
            yield ids, positions


def pack(lengths: Sequence[int], length: int, strategy: str = "best-fit") -> Packing:
    """Pack documents of these lengths into sequences of `length` tokens.

    Args:
        lengths: tokens of each document, separators included; empty ones take no place.
        strategy: a name in PACKERS.
    Raises: UserError for a length below 1 or an unknown strategy.
    """
    if length < 1:
        raise UserError(f"length = {length}: a sequence has 1 token or more")
    packer: Callable[[Sequence[int], int], Sequences] = look_up(PACKERS, strategy, seam="packer")
    return Packing(length=length, sequences=packer(lengths, length))


def concatenate(lengths: Sequence[int], length: int) -> Sequences:
    """The documents in their order as one stream, cut every `length` tokens."""
    sequences: Sequences = []
    room = 0
    for document, size in enumerate(lengths):
        start = 0
        while start < size:
            if not room:
                sequences.append([])
                room = length
            stop = min(size, start + room)
            sequences[-1].append(Piece(document, start, stop))
            room -= stop - start
            start = stop
    return sequences


def _longest_first(lengths: Sequence[int], length: int) -> tuple[Sequences, list[Piece]]:
    """Whole sequences cut from long documents, and the pieces that are left, longest first."""
    full: Sequences = []
    rest: list[Piece] = []
    for document, size in enumerate(lengths):
        whole = size - size % length
        full += [[Piece(document, at, at + length)] for at in range(0, whole, length)]
        if whole < size:
            rest.append(Piece(document, whole, size))
    return full, sorted(rest, key=lambda piece: -piece.size)


def first_fit_decreasing(lengths: Sequence[int], length: int) -> Sequences:
    """Each piece, longest first, into the first sequence that has room.

    A tree over the sequences knows the most room below each node, so the first is found in log n.
    """
    full, rest = _longest_first(lengths, length)
    opened: Sequences = []
    leaves = 1 << max(0, len(rest) - 1).bit_length()
    room = [length] * (2 * leaves)  # a sequence that is not opened yet is empty
    for piece in rest:
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < piece.size:
                node += 1
        if node - leaves == len(opened):
            opened.append([])
        opened[node - leaves].append(piece)
        room[node] -= piece.size
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return full + opened


def best_fit(lengths: Sequence[int], length: int) -> Sequences:
    """Each piece, longest first, into the sequence whose room it leaves the least of.

    Sequences with the same room are alike, so they wait in one stack; the rooms that occur are kept
    in order.
    """
    full, rest = _longest_first(lengths, length)
    opened: Sequences = []
    rooms: list[int] = []
    waiting: dict[int, list[int]] = {}
    for piece in rest:
        at = bisect.bisect_left(rooms, piece.size)
        if at < len(rooms):
            room = rooms[at]
            number = waiting[room].pop()
            if not waiting[room]:
                del rooms[at], waiting[room]
        else:
            room, number = length, len(opened)
            opened.append([])
        opened[number].append(piece)
        left = room - piece.size
        if left and left not in waiting:
            bisect.insort(rooms, left)
            waiting[left] = []
        if left:
            waiting[left].append(number)
    return full + opened

"""The tokenizer: added tokens, normalizer, cuts, model, post-processor, and the way back.

Special tokens are looked for only when the caller allows it: by default the text of one stays
text, so that nobody can write a turn marker into a message. Added tokens that are not special
(runs of spaces, `<think>`) are vocabulary like any other and are always found.

`encode` gives the ids of the text alone; `encoding` adds what the post-processor puts around it,
with offsets, truncation and padding. Ids come from compiled kernels once there is enough text to
repay loading them (compiled.py); this file is the readable way to the same ids.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.errors import UserError
from lmworks.tokenizers import decoders, normalizers, post_processors, pre_tokenizers
from lmworks.tokenizers.added_tokens import AddedTokenFinder
from lmworks.tokenizers.aligned import Span
from lmworks.tokenizers.base import Message, StreamDecoder, check_id
from lmworks.tokenizers.bpe import BPE
from lmworks.tokenizers.encoding import Encoding, shares
from lmworks.tokenizers.vocabulary import Vocabulary

if TYPE_CHECKING:
    from lmworks.tokenizers.compiled import CompiledEncoder

_REPAYS_LOADING = 1 << 14  # characters from which on loading the kernels pays
_REPAYS_BUILDING = 1 << 23  # and compiling them, which takes seconds, once on a machine
_CACHED_WORDS = 1 << 18
_CACHED_WORD_CHARACTERS = 64  # longer words rarely come again


class PipelineTokenizer:
    """A Vocabulary at work.

    Raises: UserError for merges that make tokens which the vocabulary does not hold, and for
    steps that are not known.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.vocab_size = len(vocabulary.tokens)
        self.special_tokens = {t.text: t.id for t in vocabulary.added_tokens if t.special}
        self.chat_template = vocabulary.chat_template
        ids = vocabulary.added_ids
        self.bos_token_id = ids.get(vocabulary.bos_token or "")
        self.eos_token_id = ids.get(vocabulary.eos_token or "")
        self.pad_token_id = ids.get(vocabulary.pad_token or "")
        self.unk_token_id: int | None = getattr(vocabulary.model, "unk_id", None)
        self.byte_level = isinstance(vocabulary.model, BPE) and vocabulary.model.byte_level
        self.normalizer = normalizers.build(vocabulary.normalizer)
        self.pre_tokenizer = pre_tokenizers.build(vocabulary.pre_tokenizer)
        self.added_tokens = AddedTokenFinder(vocabulary.added_tokens, self.normalizer)
        self._decode_texts = decoders.build(vocabulary.decoder)
        self._post_process = post_processors.build(vocabulary.post_processor)
        self._words: dict[str, list[int]] = {}
        self._token_bytes: dict[int, bytes] = {}
        self._kernels: CompiledEncoder | Literal[False] | None = None  # None: not asked for yet
        self._seen = 0  # characters so far
        self._lock = threading.Lock()
        if isinstance(vocabulary.model, BPE):
            vocabulary.model.check()  # a vocabulary that does not hold together says so now

    def encode(self, text: str | bytes, *, allow_special: bool = False) -> list[int]:
        """Ids of `text`; byte-level tokenizers keep bytes that are no UTF-8 as they are.

        Args:
            allow_special: read the text of special tokens as those tokens. For templates and
                files, not for what a user typed.
        A byte that the vocabulary has no token for is dropped; ours have all 256.
        """
        if self._kernels is not None or self._repays(len(text)):
            found = self._compiled_ids(text, allow_special)
            if found is not None:
                ids: list[int] = found.tolist()
                return ids
        return self.encode_readable(text, allow_special=allow_special)

    def encode_readable(self, text: str | bytes, *, allow_special: bool = False) -> list[int]:
        """`encode` in plain Python: the oracle of the kernels, and the way to read."""
        ids: list[int] = []
        for piece, token_id, begins in self.pieces(text, allow_special=allow_special):
            if token_id is None:
                self._pieces_to_ids(ids, self.pre_tokenizer.change(piece, at_start=begins))
            else:
                ids.append(token_id)
        return ids

    def pieces(
        self, text: str | bytes, *, allow_special: bool = False
    ) -> Iterator[tuple[str, int | None, bool]]:
        """Added tokens and the normalised text between them, as `AddedTokenFinder.split`."""
        return self.added_tokens.split(_text_of(text), allow_special=allow_special)

    def encode_sampled(
        self,
        text: str | bytes,
        *,
        seed: int,
        alpha: float | None = None,
        dropout: float | None = None,
        allow_special: bool = False,
    ) -> list[int]:
        """Ids of a cut drawn at random, the same for the same seed; for many texts, make a
        `SubwordSampler` (subword_regularization.py, which says what the settings mean).

        Raises: UserError for a setting that the model does not have.
        """
        from lmworks.tokenizers.subword_regularization import SubwordSampler

        sampler = SubwordSampler(self, alpha=alpha, dropout=dropout)
        return sampler.encode(text, seed=seed, allow_special=allow_special)

    def _pieces_to_ids(self, ids: list[int], text: str) -> None:
        known = self._words
        for word in self.pre_tokenizer.words(text):
            found = known.get(word)
            if found is None:
                found = self.vocabulary.model.encode_piece(word)
                if len(word) <= _CACHED_WORD_CHARACTERS:
                    if len(known) >= _CACHED_WORDS:
                        known.clear()
                    known[word] = found
            ids.extend(found)

    def encode_array(self, text: str | bytes, *, allow_special: bool = False) -> Any:
        """`encode` as int32 [tokens], the fastest way; kernels are built if need be."""
        import numpy as np

        if self._kernels is None:
            self.kernels()
        found = self._compiled_ids(text, allow_special)
        if found is not None:
            return found
        return np.array(self.encode_readable(text, allow_special=allow_special), dtype=np.int32)

    def encode_batch(self, texts: Iterable[str], *, allow_special: bool = False) -> list[list[int]]:
        """`encode` of each text, on all cores where that pays."""
        texts = list(texts)
        if self._kernels is None:
            self._repays(sum(map(len, texts)))
        if not self._kernels:
            return [self.encode(text, allow_special=allow_special) for text in texts]
        batch = self._kernels.encode_batch(texts, allow_special=allow_special)
        return [
            self.encode_readable(text, allow_special=allow_special) if ids is None else ids.tolist()
            for text, ids in zip(texts, batch)
        ]

    def _repays(self, characters: int) -> bool:
        """Whether there was enough text for kernels, and they could be loaded."""
        from lmworks.tokenizers import calls

        self._seen += characters
        enough = (
            _REPAYS_LOADING if self._seen < _REPAYS_BUILDING and calls.ready() else _REPAYS_BUILDING
        )
        if self._seen < enough:
            return False
        self.kernels()
        return True

    def kernels(self) -> CompiledEncoder | Literal[False]:
        """The compiled path, built if need be; False when only the readable one can run this."""
        from lmworks.tokenizers.compiled import CompiledEncoder

        with self._lock:
            if self._kernels is None:
                self._kernels = CompiledEncoder.of(self) or False
            return self._kernels

    def _compiled_ids(self, text: str | bytes, allow_special: bool) -> Any | None:
        if not self._kernels:
            return None
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError:
                return None
        return self._kernels.encode(text, allow_special=allow_special)

    def encode_offsets(
        self, text: str | bytes, *, allow_special: bool = False
    ) -> tuple[list[int], list[Span]]:
        """Ids, and for each the start and end of its characters in `text`.

        Tokens that share a character have the whole character as their span.
        """
        found = list(self._aligned(_text_of(text), allow_special))
        return [token_id for token_id, _, _ in found], [span for _, span, _ in found]

    def _aligned(self, text: str, allow_special: bool) -> Iterator[tuple[int, Span, int]]:
        """(id, span, number of the piece) of every token."""
        word = -1
        for piece, token_id in self.added_tokens.split_aligned(text, allow_special=allow_special):
            if token_id is not None:
                word += 1
                yield token_id, piece.span(0, len(piece.text)), word
                continue
            begins = bool(piece.text) and piece.spans[0][0] == 0
            piece = self.pre_tokenizer.align(piece, at_start=begins)
            for start, end in self.pre_tokenizer.pieces(piece.text):
                word += 1
                for token in self.vocabulary.model.encode_spans(piece.text[start:end]):
                    yield token.id, piece.span(start + token.start, start + token.end), word

    def encoding(
        self,
        text: str,
        text_pair: str | None = None,
        *,
        add_special_tokens: bool = True,
        allow_special: bool = True,
        max_length: int | None = None,
        stride: int = 0,
        truncation_side: Literal["right", "left"] = "right",
    ) -> Encoding:
        """One text, or a pair, as a model takes it: with special tokens, offsets and masks.

        Args:
            max_length: tokens in all; what is cut off stands in `overflowing`, in windows that
                share `stride` tokens.

        Raises: UserError when `max_length` leaves no room for the special tokens.
        """
        texts = [text] if text_pair is None else [text, text_pair]
        parts = [self._plain(part, i, allow_special).with_type(i) for i, part in enumerate(texts)]
        if max_length is None:
            return self._assembled(parts, add_special_tokens)
        step = self.vocabulary.post_processor
        special = post_processors.num_special(step, pair=len(parts) == 2)
        room = max_length - (special if add_special_tokens else 0)
        if room < 0:
            raise UserError(f"max_length = {max_length}: {special} special tokens need more")
        rooms = shares(len(parts[0]), len(parts[1]), room) if len(parts) == 2 else (room,)
        windows = [
            part.windows(room, stride, side=truncation_side) for part, room in zip(parts, rooms)
        ]
        whole = self._assembled([w[0] for w in windows], add_special_tokens)
        for number, others in enumerate(windows):
            for other in others[1:]:
                kept = [w[0] for w in windows]
                kept[number] = other
                whole.overflowing.append(self._assembled(kept, add_special_tokens))
        return whole

    def _plain(self, text: str, number: int, allow_special: bool) -> Encoding:
        found = list(self._aligned(text, allow_special))
        ids = [token_id for token_id, _, _ in found]
        return Encoding.of(
            ids,
            [span for _, span, _ in found],
            [self.token_text(i) for i in ids],
            words=[word for _, _, word in found],
            sequence=number,
        )

    def _assembled(self, parts: list[Encoding], add_special_tokens: bool) -> Encoding:
        whole = self._post_process(parts, add_special_tokens)
        return functools.reduce(Encoding.joined, whole, Encoding.of([], [], []))

    def encodings(
        self,
        texts: Iterable[str | tuple[str, str]],
        *,
        padding: Literal[False, "longest", "max_length"] = False,
        pad_to_multiple_of: int = 1,
        padding_side: Literal["right", "left"] = "right",
        max_length: int | None = None,
        **options: Any,
    ) -> list[Encoding]:
        """`encoding` of each text or pair, padded to one length if asked."""
        pairs = [(text, None) if isinstance(text, str) else text for text in texts]
        found = [self.encoding(*pair, max_length=max_length, **options) for pair in pairs]
        if not padding or not found:
            return found
        if self.pad_token_id is None:
            raise UserError("the tokenizer has no padding token: name one in its config")
        longest = max(map(len, found))
        length = max_length if padding == "max_length" and max_length else longest
        length += -length % pad_to_multiple_of
        pad = self.token_text(self.pad_token_id)
        return [e.padded(length, self.pad_token_id, pad, side=padding_side) for e in found]

    def token_text(self, token_id: int) -> str:
        """The token as files write it (`Ġthe`, `▁the`, `##ing`)."""
        return self.vocabulary.texts[check_id(token_id, self.vocab_size)]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token adds to a text when it is decoded in the middle of one."""
        found = self._token_bytes.get(token_id)
        if found is None:
            found = self._token_bytes[token_id] = self._bytes_in_text(token_id)
        return found

    def _bytes_in_text(self, token_id: int) -> bytes:
        token = self.vocabulary.tokens[check_id(token_id, self.vocab_size)]
        if self.byte_level or token_id in self._special_ids:
            return token
        text = token.decode("utf-8", "replace")
        byte = decoders.byte_of(text)
        if byte is not None and self._decode_texts([text]) != [text]:
            return bytes([byte])
        anchor = self._decode_texts(["a", text])
        return "".join(anchor).removeprefix("a").encode()

    @functools.cached_property
    def _special_ids(self) -> set[int]:
        return set(self.special_tokens.values())

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids add to a text. Raises: UserError for an id out of range."""
        if self.byte_level:
            ids = list(ids)
            for outermost in (min(ids), max(ids)) if ids else ():
                check_id(outermost, self.vocab_size)
            return b"".join(map(self.vocabulary.tokens.__getitem__, ids))
        return b"".join(map(self.token_bytes, ids))

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of the ids; bytes that are no UTF-8 become U+FFFD."""
        if skip_special:
            skipped = set(self.special_tokens.values())
            ids = (i for i in ids if i not in skipped)
        if self.byte_level and not self.vocabulary.model.end_of_word_suffix:  # type: ignore[union-attr]
            return self.decode_bytes(ids).decode("utf-8", "replace")
        return "".join(self._decode_texts([self.token_text(i) for i in ids]))

    def stream_decoder(self) -> StreamDecoder:
        """For text that arrives token by token; special tokens give no text."""
        return StreamDecoder(self, skip_special=True)

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Message] | None = None,
    ) -> str:
        """The chat template filled in. Raises: UserError when there is none or it fails."""
        from lmworks.tokenizers.chat import render

        return render(self, messages, add_generation_prompt=add_generation_prompt, tools=tools)

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Message] | None = None,
    ) -> list[int]:
        """Ids of the rendered chat, in which special tokens come from the template alone."""
        from lmworks.tokenizers.chat import encode

        return encode(self, messages, add_generation_prompt=add_generation_prompt, tools=tools)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`."""
        from lmworks.tokenizers.huggingface import save

        save(self.vocabulary, Path(folder))

    def gguf_metadata(self) -> dict[str, Any]:
        """The `tokenizer.*` keys of a GGUF file."""
        from lmworks.tokenizers.gguf import to_metadata

        return to_metadata(self.vocabulary)


def _text_of(text: str | bytes) -> str:
    # Invalid bytes become lone surrogates, which the model turns back into the bytes.
    return text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text

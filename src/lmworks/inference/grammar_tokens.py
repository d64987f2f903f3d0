"""From a grammar to the tokens that may come next, for any of our tokenizers.

`llguidance` walks a trie over the bytes of all tokens along with its parser, so what it is given is
the bytes that each token adds to a text. With SentencePiece and WordPiece these depend on the
place: the blank that a first token carries is not shown. So the trie also holds, beyond the
vocabulary, every token as it is shown in first place, and the first mask is read there.

Grammars are compiled once: a request gets a copy of the compiled one. What a hostile grammar can
take is bounded by `_limits`, in memory and in time per token; where a bound is met, generation
ends with an error that says so.

Source: the algorithm is that of Koo, Liu and He 2024, arXiv 2407.08103 (automata over tokens), and
Geng et al. 2023, arXiv 2305.13971 (grammars), as `llguidance` builds them.
"""

from __future__ import annotations

import codecs
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lmworks.core.errors import MissingExtra
from lmworks.inference.grammar import Grammar
from lmworks.inference.sampling import InvalidParameter

_KEPT = 64  # compiled grammars
_SHOWN_CHARACTERS = 300
_NO_TOKEN = "no token of this vocabulary can go on in this form"


class GrammarError(RuntimeError):
    """The grammar can't go on from here: a limit was met, or no token fits."""


class GrammarCompiler:
    """Grammars for one vocabulary.

    Args:
        tokenizer: any of ours.
        eos_token_ids: ids that end an answer; allowed wherever the answer may be complete.
        vocab_size: ids from there on are never allowed; the length of a mask.
    Raises: MissingExtra.
    """

    def __init__(self, tokenizer: Any, eos_token_ids: Iterable[int], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.tokens = TokenBytes(tokenizer, vocab_size)
        ends = sorted(i for i in eos_token_ids if i < vocab_size)
        self._trie = _trie(self.tokens, ends)
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, grammar: Grammar) -> GrammarState:
        """A new answer under the grammar. Any thread may call this.

        Raises: InvalidParameter for a grammar that is none, can't be met, or can't be begun with
            any token.
        """
        with self._lock:
            matcher = self._compiled.get(grammar)
            if matcher is not None:
                self._compiled.move_to_end(grammar)
        if matcher is None:
            matcher = self._compile(grammar)  # not under the lock: it may take a second
            with self._lock:
                self._compiled[grammar] = matcher
                while len(self._compiled) > _KEPT:
                    self._compiled.popitem(last=False)
        return GrammarState(matcher.deep_copy(), self.tokens)

    def _compile(self, grammar: Grammar) -> Any:
        llguidance = _llguidance()
        source = llguidance.LLMatcher.grammar_from_lark(_lark(grammar))
        matcher = llguidance.LLMatcher(self._trie, source, log_level=0, limits=_limits())
        if matcher.is_error():
            reason = _reason(matcher.get_error(), grammar=grammar)
            raise InvalidParameter(grammar.param, reason)
        state = GrammarState(matcher.deep_copy(), self.tokens)
        if not state.finished:
            try:
                state.allowed_mask()
            except GrammarError as error:
                raise InvalidParameter(grammar.param, str(error)) from error
        return matcher


class GrammarState:
    """How far one answer has come. Only one thread may use it."""

    def __init__(self, matcher: Any, tokens: TokenBytes) -> None:
        self._matcher, self._tokens = matcher, tokens
        self._accepted = 0

    @property
    def finished(self) -> bool:
        """The answer is complete, and nothing can follow it."""
        return bool(self._matcher.is_stopped())

    def allowed_mask(self) -> np.ndarray:
        """(V,) bool, the tokens that may come next.

        Raises: GrammarError at a limit, and where no token can go on: a vocabulary may be unable
            to write what the grammar demands (WordPiece has no quotation mark without a blank).
        """
        try:
            bits = self._matcher.compute_bitmask()
        except ValueError as error:
            raise GrammarError(_reason(error)) from error
        if self._matcher.is_error():
            raise GrammarError(_reason(self._matcher.get_error()))
        mask = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little").view(bool)
        if self._accepted == 0 and self._tokens.first_ids is not None:
            mask = mask[self._tokens.first_ids]
        mask = mask[: self._tokens.vocab_size]
        if not mask.any():
            raise GrammarError(_NO_TOKEN)
        return mask

    def accept(self, token_id: int) -> None:
        """Go on with a token. Raises: GrammarError for one that the mask forbids."""
        first_ids = self._tokens.first_ids
        if self._accepted == 0 and first_ids is not None:
            token_id = int(first_ids[token_id])
        if not self._matcher.consume_token(token_id):
            raise GrammarError(_reason(self._matcher.get_error()))
        self._accepted += 1

    def valid_prefix(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens could follow, one after the other."""
        ids = [int(i) for i in token_ids]
        if ids and self._accepted == 0 and self._tokens.first_ids is not None:
            ids[0] = int(self._tokens.first_ids[ids[0]])
        return int(self._matcher.validate_tokens(ids))

    def rollback(self, count: int) -> None:
        """Forget the last tokens."""
        if count and not self._matcher.rollback(count):
            raise GrammarError(_reason(self._matcher.get_error()))
        self._accepted -= count

    def stream_decoder(self) -> GrammarDecoder:
        """Tokens to text, to the byte as the grammar saw them."""
        return GrammarDecoder(self._tokens)


class GrammarDecoder:
    """A `stopping.StreamDecoder` over the bytes that the grammar was checked with."""

    def __init__(self, tokens: TokenBytes) -> None:
        self._tokens = tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._first = True

    def push(self, token_id: int) -> str:
        """The text that this token completes."""
        tokens, first = self._tokens, self._first
        self._first = False
        if token_id in tokens.special_ids:
            return ""
        if first and tokens.first_ids is not None:
            token_id = int(tokens.first_ids[token_id])
        return self._utf8.decode(tokens.texts[token_id])

    def finish(self) -> str:
        """U+FFFD for an unfinished character."""
        return self._utf8.decode(b"", final=True)


class TokenBytes:
    """The bytes of every token, in the middle of a text and in first place.

    Attributes:
        texts: by id; beyond the vocabulary, those that are shown only in first place.
        first_ids: (V,) where in `texts` each token stands when it is the first, or None where
            that makes no difference.
    """

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.special_ids = frozenset(tokenizer.special_tokens.values())
        self.texts = [tokenizer.decode_bytes([i]) for i in range(vocab_size)]
        self.first_ids = None if tokenizer.byte_level else self._first_ids(tokenizer)

    def _first_ids(self, tokenizer: Any) -> np.ndarray | None:
        known = {text: i for i, text in enumerate(self.texts) if i not in self.special_ids}
        ids = np.arange(self.vocab_size)
        for token_id in range(self.vocab_size):
            text = self.texts[token_id]
            if not text.startswith(b" ") or token_id in self.special_ids:
                continue
            shown = tokenizer.decode([token_id]).encode()
            if shown != text:
                if shown not in known:
                    known[shown] = len(self.texts)
                    self.texts.append(shown)
                ids[token_id] = known[shown]
        return (
            ids if len(self.texts) > self.vocab_size or (ids != np.arange(len(ids))).any() else None
        )


def _trie(tokens: TokenBytes, ends: Sequence[int]) -> Any:
    class Vocabulary:
        """As `llguidance` asks for one; its cuts are wanted for forced text, and none is."""

        eos_token_id = ends[0] if ends else len(tokens.texts)
        bos_token_id = None
        special_token_ids = sorted(tokens.special_ids | set(ends))

        def __init__(self) -> None:
            self.tokens = tokens.texts if ends else [*tokens.texts, b"<end>"]

        def __call__(self, text: bytes) -> list[int]:
            return []

    llguidance = _llguidance()
    vocabulary = Vocabulary()
    if not ends:
        vocabulary.special_token_ids.append(vocabulary.eos_token_id)
    wrapper = llguidance.TokenizerWrapper(vocabulary)
    return llguidance.LLTokenizer(
        wrapper, n_vocab=len(vocabulary.tokens), eos_token=list(ends) or [vocabulary.eos_token_id]
    )


def _lark(grammar: Grammar) -> str:
    """The grammar in Lark's notation. Text that can only go on in one way is not forced into the
    tokens that `llguidance` would cut it into: any tokens that spell it will do."""
    if grammar.kind == "lark" and "%llguidance" in grammar.text:
        return grammar.text
    head = '%llguidance {"no_forcing": true}\n'
    if grammar.kind == "json_schema":
        return f"{head}start: %json {grammar.text}"
    if grammar.kind == "regex":
        return f"{head}start: /{_llguidance().regex_to_lark(grammar.text, '')}/"
    return head + grammar.text


def _limits() -> Any:
    # A state of the lexer takes one to two kilobytes; the fuel, some 20 ms a token.
    return _llguidance().LLParserLimits(max_lexer_states=50_000, verbose_errors=False)


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingExtra("llguidance", "structured", "an answer held to a grammar") from error
    return llguidance


# What stands before the reason: a place in the grammar that we wrote around a schema; and behind
# it: that grammar.
_PLACE = re.compile(r"^at (\d+)\((\d+)\): (failed to compile JSON schema: )?")
_LISTING = re.compile(r"\s+\d+ \| .*")


def _reason(told: object, *, grammar: Grammar | None = None) -> str:
    """What `llguidance` tells, in one line; places are those of the user's own grammar."""
    line = _LISTING.sub("", " ".join(str(told).replace("<non-verbose/>", "").split()))
    place = _PLACE.match(line)
    if place:
        line = line[place.end() :]
        if grammar is not None and grammar.kind == "lark":
            ours = "%llguidance" not in grammar.text
            line = f"line {int(place[1]) - ours}, column {place[2]}: {line}"
    if line.startswith("NoExtension"):
        return _NO_TOKEN
    return line if len(line) <= _SHOWN_CHARACTERS else line[:_SHOWN_CHARACTERS] + "..."

"""Which tokens of a conversation the assistant said, under any chat template.

Nothing of a template is known here. It is asked: rendered up to an answer, it gives what the model
sees before it answers; rendered with the answer, what it should have said. The answer is what the
second adds to the first, up to and with the token that ends it. An answer is learnt where the
rendering of the whole conversation still holds it to the letter; a template that strips earlier
thoughts, or writes another end once a turn follows, has rewritten it, and then it is history: the
last answer is learnt, the earlier ones are read. Where a template marks its answers itself, by
`{% generation %}`, its word counts.

What is told apart, since templates differ in it: a prompt that opens with more than the answer
repeats (DeepSeek's `<think>`), an end that belongs to no turn but to the text (Phi's last token),
white space behind the end, which nobody generates. Where a template ends its answers with no token
of their own, the tokenizer's EOS is put behind the last one, so that a model learns to stop. A
token that lies across a border is not learnt, and is counted.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from lmworks.core.errors import UserError
from lmworks.training.mask_config import MaskConfig

if TYPE_CHECKING:
    from lmworks.tokenizers.base import Tokenizer
    from lmworks.tokenizers.content_marks import Written
    from lmworks.tokenizers.tokenizer import PipelineTokenizer

Span = tuple[int, int]  # characters of the rendered text, start up to end

_THOUGHT = re.compile(r"(?s)<think>.*?</think>")
_THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")
_HIDDEN = (
    "the template hides it: nothing of its text is in what the model would see (a template for "
    'pictures may want content as parts: [{"type": "text", "text": ...}])'
)
_REWRITTEN = "the template writes it differently once other messages follow"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masked:
    """A conversation as tokens, with what is learnt of it.

    Attributes:
        ids: (N,) int32.
        is_target: (N,) bool; what ends an answer is part of it.
        learnt: numbers of the messages that are learnt.
        left_out: the other answers that were wanted, each with the reason.
        num_straddling: tokens across the border of an answer; they are not learnt.
        ends: whether an answer ends with a token of its own, so that a model learns to stop.
    """

    ids: np.ndarray
    is_target: np.ndarray
    learnt: tuple[int, ...]
    left_out: Mapping[int, str]
    num_straddling: int
    ends: bool


def mask_answers(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    config: MaskConfig | None = None,
    where: str = "conversation",
) -> Masked:
    """Encode a conversation up to its last answer, and find what of it is learnt.

    Args:
        messages: as in OpenAI's API; an answer with `weight` 0 is read and not learnt.
        where: what to call the conversation in an error.
    Raises: UserError when nothing of it could be learnt, or the template fails on it.
    """
    try:
        return _masked(
            cast("PipelineTokenizer", tokenizer), messages, tools, config or MaskConfig()
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _masked(
    tokenizer: PipelineTokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    config: MaskConfig,
) -> Masked:
    answers = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    if not answers:
        raise UserError("no assistant message, so there is nothing to learn")
    unwanted = {i for i in answers if messages[i].get("weight", 1) == 0}
    if not config.tool_calls:
        unwanted |= {i for i in answers if messages[i].get("tool_calls")}
    last = answers[-1]
    kept = [{k: v for k, v in m.items() if k != "weight"} for m in messages[: last + 1]]
    chat = _Chat(tokenizer, kept, tools, day(config.date))
    wanted = [
        i for i in (answers[-1:] if config.loss_on == "last" else answers) if i not in unwanted
    ]
    left_out: dict[int, str] = {}
    if config.loss_on == "everything":
        found = {last: [(0, len(chat.text))]}
    elif not wanted:
        raise UserError("every answer is left out (weight 0, or a tool call): nothing to learn")
    elif chat.tagged:
        found = _tagged(chat, answers, wanted)
    else:
        found = {}
        for index in wanted:
            span = _answer(chat, index)
            if isinstance(span, str):
                left_out[index] = span
            else:
                found[index] = [span]
    if not found:
        raise UserError(f"no answer can be learnt: {left_out[wanted[-1]]}")
    return _on_tokens(chat, found, left_out, config)


def day(date: str) -> datetime.datetime:
    """Noon of the day. Raises: UserError for what is no day."""
    try:
        return datetime.datetime.fromisoformat(date).replace(hour=12, tzinfo=None)
    except ValueError as error:
        raise UserError(f"date = {date!r}: write a day as YYYY-MM-DD") from error


@functools.lru_cache(maxsize=8)
def _added(tokenizer: PipelineTokenizer) -> frozenset[int]:
    """Ids of added tokens, but those of white space (Gemma has some)."""
    return frozenset(i for text, i in tokenizer.vocabulary.added_ids.items() if text.strip())


class _Chat:
    """A conversation that ends with an answer, and what the template makes of its beginnings."""

    def __init__(
        self,
        tokenizer: PipelineTokenizer,
        messages: list[dict[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        now: datetime.datetime,
    ) -> None:
        from lmworks.tokenizers import chat

        if not tokenizer.chat_template:
            raise UserError(
                "the tokenizer has no chat template, as a base model's: start from a model for "
                "chat, or put a chat_template.jinja beside its tokenizer.json"
            )
        self.tokenizer, self.messages = tokenizer, messages
        self._tools, self._now, self._chat = tools, now, chat
        self.tagged = chat.has_generation_tags(tokenizer.chat_template)
        self.text = self.render(messages)
        self._written: list[Written] | Literal[False] | None = False
        self.ids, self.starts, self.ends = self._tokens()

    def render(
        self, messages: Sequence[Any], *, prompt: bool = False, marks: Span | None = None
    ) -> str:
        return self._chat.render(
            self.tokenizer,
            messages,
            add_generation_prompt=prompt,
            tools=self._tools,
            now=self._now,
            generation_marks=(chr(marks[0]), chr(marks[1])) if marks else ("", ""),
        )

    def try_render(self, messages: Sequence[Any], *, prompt: bool = False) -> str | None:
        """None where the template refuses."""
        try:
            return self.render(messages, prompt=prompt)
        except UserError:
            return None

    @functools.cached_property
    def opening(self) -> str:
        """What the template writes before any answer to a question."""
        question = [{"role": "user", "content": "?"}]
        asked, bare = self.try_render(question, prompt=True), self.try_render(question)
        return (asked or "")[_common(asked or "", bare or "") :]

    @property
    def written(self) -> list[Written] | None:
        """Where the messages' own texts stand; None where marks change what the template does."""
        if self._written is False:
            from lmworks.tokenizers.content_marks import find_written

            self._written = find_written(self.text, self.messages, self.render)
        return self._written

    def written_by(self, index: int) -> list[Written] | None:
        return None if self.written is None else [w for w in self.written if w.message == index]

    def at_token(self, at: int) -> int:
        """The last border of tokens up to the character `at`."""
        number = int(np.searchsorted(self.starts, at)) - 1  # the last token that begins before it
        return int(self.starts[number]) if number >= 0 and self.ends[number] > at else at

    def added_ends(self, start: int, end: int) -> list[int]:
        """Where tokens end that stand in this stretch and were added to the vocabulary."""
        return self._ends_of(_added(self.tokenizer), start, end)

    def ended(self, start: int, end: int) -> bool:
        """Whether a special token ends this stretch, white space apart."""
        at = self._ends_of(frozenset(self.tokenizer.special_tokens.values()), start, end)
        return bool(at) and not self.text[at[-1] : end].strip()

    def _ends_of(self, wanted: frozenset[int], start: int, end: int) -> list[int]:
        first, stop = np.searchsorted(self.starts, [start, end])
        return [int(self.ends[i]) for i in range(first, stop) if int(self.ids[i]) in wanted]

    def _tokens(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N,) ids, and the characters at which each begins and ends."""
        options: dict[str, Any] = {
            "add_generation_prompt": False,
            "tools": self._tools,
            "now": self._now,
        }
        if self.tokenizer.byte_level:
            ids = self._chat.encode(self.tokenizer, self.messages, **options)
            pieces = [self.tokenizer.token_bytes(i) for i in ids]
            data = self.text.encode("utf-8", "surrogatepass")
            if b"".join(pieces) == data:  # not where a token takes the space behind it
                stops = np.cumsum([len(piece) for piece in pieces])
                starts = np.concatenate([[0], stops[:-1]])
                begins = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80
                character = np.cumsum(begins) - 1  # of each byte
                ends = character[np.maximum(stops, 1) - 1] + 1
                return np.array(ids, np.int32), character[np.minimum(starts, len(data) - 1)], ends
        ids, spans = self._chat.encode_offsets(self.tokenizer, self.messages, **options)
        places = np.array(spans, dtype=np.int64).reshape(-1, 2)
        return np.array(ids, np.int32), places[:, 0], places[:, 1]


def _answer(chat: _Chat, index: int) -> Span | str:
    """Where the answer stands in the whole, or why it can't be learnt there."""
    whole = chat.text
    is_last = index == len(chat.messages) - 1
    upto = whole if is_last else chat.try_render(chat.messages[: index + 1])
    if upto is None:
        return "the template refuses a conversation that ends here"
    start = _start(chat, index)
    if start is None:
        return _REWRITTEN
    written = chat.written_by(index)
    tail = max([start, *(w.end for w in written or ())])
    end = _end(chat, index, upto, tail)
    if whole[:end] != upto[:end]:
        return _REWRITTEN
    if not _holds(chat, index, start, end):
        return _HIDDEN
    return start, end


def _start(chat: _Chat, index: int) -> int | None:
    """Where the model takes over; None where what it saw before that is no longer there."""
    whole, before = chat.text, chat.messages[:index]
    written = chat.written_by(index)
    first = min(w.start for w in written) if written else len(whole)  # of its own texts
    prompt = chat.try_render(before, prompt=True)
    if prompt is not None and whole.startswith(prompt):
        start = len(prompt)
        # After a tool's result some templates write the opening only once the answer is there.
        opened = start + len(chat.opening)
        again = written and opened <= first and whole.startswith(chat.opening, start)
        return opened if again else start
    if prompt is not None:
        bare = chat.try_render(before) or ""
        header, shared = _common(bare, prompt), _common(whole, prompt)
        # The turn opens as the prompt does, and then the answer goes another way.
        if (at := min(chat.at_token(shared), first)) > header:
            return at
        if index < len(chat.messages) - 1:
            return None
        opening = prompt[header:]
    else:
        opening = ""
    # Of the last answer it is known where its text stands: the turn's opening is looked for there.
    if not written:
        return None
    earlier = [w.end for w in chat.written or () if w.message < index and w.end <= first]
    gap = max(earlier, default=0)
    found = whole.rfind(opening, gap, first) if opening else -1
    return first if found < 0 else found + len(opening)


def _end(chat: _Chat, index: int, upto: str, tail: int) -> int:
    """Where the answer ends in `upto`, which ends with its turn. What came behind is not its own.

    Args:
        tail: where the last text of its own ends.
    """
    end = len(upto)
    question = {"role": "user", "content": "?"}
    followed = chat.try_render([*chat.messages[: index + 1], question])
    if followed is not None:
        # What stands there whoever follows; the rest, if it ends nothing, ends the whole text.
        common = chat.at_token(_common(upto, followed))
        ended = chat.added_ends(tail, common)
        if common >= tail and (ended or not chat.added_ends(tail, end)):
            end = common if common > tail else end
    ends = chat.added_ends(tail, end)
    return ends[-1] if ends and not upto[ends[-1] : end].strip() else end


def _holds(chat: _Chat, index: int, start: int, end: int) -> bool:
    """Whether the stretch has something of the message's own."""
    said = chat.text[start:end]
    if end <= start or not said.strip():
        return False
    written = chat.written_by(index)
    if written is not None and any(start <= w.start and w.end <= end for w in written):
        return True
    # A template that takes a text apart, at `</think>`, leaves its last line.
    lines = [text.strip().splitlines()[-1].strip() for text in _texts(chat.messages[index])]
    return not lines or any(line in said for line in lines)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from [value] if value.strip() else []
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in ("role", "id", "type"):
                yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _tagged(chat: _Chat, answers: list[int], wanted: list[int]) -> dict[int, list[Span]]:
    """What the template itself marks as said by the assistant."""
    opens, closes = 0xE000, 0xE001
    while chr(opens) in chat.text or chr(closes) in chat.text:
        opens, closes = opens + 2, closes + 2
    marked = chat.render(chat.messages, marks=(opens, closes))
    spans: list[Span] = []
    start = 0
    for number, match in enumerate(re.finditer(f"[{chr(opens)}{chr(closes)}]", marked)):
        at = match.start() - number
        if match[0] == chr(opens):
            start = at
        elif at > start:
            spans.append((start, at))
    if len(marked) - 2 * marked.count(chr(opens)) != len(chat.text):
        raise UserError("the chat template's generation tags change what it writes")
    if not spans:
        raise UserError("the chat template's generation tags hold nothing of this conversation")
    if wanted == answers:
        return {answers[-1]: spans} | {i: [] for i in answers[:-1]}
    found: dict[int, list[Span]] = {}
    for index in wanted:
        begins = chat.try_render(chat.messages[:index], prompt=True) or ""
        ends = chat.try_render(chat.messages[: index + 1]) or ""
        low, high = _common(begins, chat.text), _common(ends, chat.text)
        inside = [s for s in spans if s[1] > low and s[0] < high]
        if not inside:
            raise UserError(f"messages[{index}] can't be told apart under this template's tags")
        found[index] = inside
    return found


def _on_tokens(
    chat: _Chat, found: Mapping[int, list[Span]], left_out: Mapping[int, str], config: MaskConfig
) -> Masked:
    mask = np.zeros(len(chat.ids), dtype=bool)
    straddling = 0
    spans = [span for stretches in found.values() for span in stretches]
    for start, end in spans:
        inside = (chat.starts >= start) & (chat.ends <= end)
        across = (chat.ends > start) & (chat.starts < end) & ~inside
        straddling += int(across.sum())
        mask |= inside
    if not config.thoughts and config.loss_on != "everything":
        for start, end in _thoughts(chat, found):
            mask &= ~((chat.starts >= start) & (chat.starts < end))
    if not mask.any():
        raise UserError("no token of its answers can be learnt")
    ids, eos = chat.ids, chat.tokenizer.eos_token_id
    ends = any(chat.ended(start, end) for start, end in spans)
    if not (ends or chat.tagged) and eos is not None and len(chat.messages) - 1 in found:
        ids, mask, ends = np.append(ids, np.int32(eos)), np.append(mask, True), True
    return Masked(
        ids=ids,
        is_target=mask,
        learnt=tuple(sorted(found)),
        left_out=left_out,
        num_straddling=straddling,
        ends=ends,
    )


def _thoughts(chat: _Chat, found: Mapping[int, list[Span]]) -> Iterator[Span]:
    yield from ((w.start, w.end) for w in chat.written or () if w.key in _THOUGHT_KEYS)
    for start, end in (span for spans in found.values() for span in spans):
        yield from (m.span() for m in _THOUGHT.finditer(chat.text, start, end))


def _common(left: str, right: str) -> int:
    """How many characters both begin with."""
    if left == right[: len(left)]:
        return len(left)
    low, high = 0, min(len(left), len(right))
    while low < high:  # by halves: slices compare faster than characters
        middle = (low + high + 1) // 2
        low, high = (middle, high) if left[:middle] == right[:middle] else (low, middle - 1)
    return low

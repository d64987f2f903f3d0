"""A prompt in the making: which turns it holds, and what stands for those before them."""

from __future__ import annotations

from collections.abc import Sequence

from lmworks.inference.memory import (
    Counter,
    DoesNotFit,
    LeftOut,
    MemoryPlan,
    MemorySettings,
    Part,
    Recalled,
    Recaller,
    Summary,
    Turn,
)
from lmworks.inference.memory_passages import passages_of, passages_of_attachments

# From so many exchanges on, the window's begin moves in steps: in between, the prompt only grows.
_STEP_FROM, _STEP = 8, 4


class Draft:
    """See the module. `limit` is the most tokens that the prompt may have; None: any number."""

    def __init__(
        self, turns: Sequence[Turn], counter: Counter, system: str, limit: int | None
    ) -> None:
        self._turns, self._counter, self._system, self._limit = list(turns), counter, system, limit
        self._begin = 0
        self._summary: Summary | None = None
        self._recalled: list[Recalled] = []
        self._without_attachments = False

    def messages(self, begin: int | None = None) -> list[dict[str, str]]:
        """What a model is sent, from the turn `begin` on."""
        system = "\n\n".join(text for text in (self._system, self._summary_text()) if text)
        head = [{"role": "system", "content": system}] if system else []
        kept = self._turns[self._begin if begin is None else begin :]
        body = [{"role": turn.role, "content": turn.text} for turn in kept]
        if body and self._without_attachments:
            body[-1]["content"] = kept[-1].content
        if body and self._recalled:
            body[-1]["content"] = _notes(self._recalled) + body[-1]["content"]
        return head + body

    def fits(self, begin: int, extra: int = 0) -> bool:
        """Whether the turns from `begin` on can be sent."""
        if self._limit is None:
            return True
        return self._counter.prompt(self.messages(begin)) + extra <= self._limit

    def start(self, extra: int = 0) -> int:
        """The earliest question from which on everything fits beside `extra` tokens."""
        begins = [i for i, turn in enumerate(self._turns) if turn.role == "user" or i == 0]
        last = len(self._turns) - 1
        begins = [i for i in begins if i <= last] or [0]
        if not self.fits(begins[-1], extra):
            raise self._refusal(begins[-1])
        low, high = 0, len(begins) - 1  # the count falls as the begin moves on
        while low < high:
            middle = (low + high) // 2
            if self.fits(begins[middle], extra):
                high = middle
            else:
                low = middle + 1
        held = len(begins) - low
        if low and held >= _STEP_FROM:
            low += -low % _STEP
        return begins[low]

    def shortened(
        self, settings: MemorySettings, summary: Summary | None, recaller: Recaller | None
    ) -> Draft:
        """The same with turns left out, and what stands for them put in. Raises: DoesNotFit."""
        assert self._limit is not None
        if summary is not None and any(turn.id == summary.upto_id for turn in self._turns):
            self._summary = summary
            if not self.fits(self._last_question()):
                self._summary = None  # the question comes first
        last = self._last_question()
        if recaller is not None and not self.fits(last) and self._turns[-1].attachments:
            self._without_attachments = True
        room = 0
        if recaller is not None:
            room = int(self._limit * settings.recall_share)
            while room and not self.fits(last, room):
                room //= 2
        self._begin = self.start(room)
        if recaller is not None:
            self._recall(recaller, room)
            self._begin = min(self._begin, self.start())  # what recall did not need
            sent = {turn.id for turn in self._turns[self._begin :]}
            self._recalled = [
                item
                for item in self._recalled
                if item.passage.turn_id not in sent or item.passage.source
            ]
        return self

    def _last_question(self) -> int:
        users = [i for i, turn in enumerate(self._turns) if turn.role == "user"]
        return users[-1] if users else len(self._turns) - 1

    def _recall(self, recaller: Recaller, room: int) -> None:
        earlier = passages_of(self._turns[: self._begin])
        if self._without_attachments:
            earlier += passages_of_attachments(self._turns[-1])
            room = max(room, self._room_left())
        used = 0
        for item in recaller.best(self._turns[-1].content, earlier):
            cost = self._counter.text(_note(len(self._recalled) + 1, item)) + 2
            if used + cost > room:
                continue
            self._recalled.append(item)
            if not self.fits(self._begin):
                self._recalled.pop()
                continue
            used += cost
        self._recalled.sort(key=lambda item: item.passage.number)

    def _room_left(self) -> int:
        assert self._limit is not None
        return self._limit - self._counter.prompt(self.messages())

    def _refusal(self, begin: int) -> DoesNotFit:
        size = self._counter.prompt(self.messages(begin))
        long = sum(self._counter.text(text) for _, text in self._turns[-1].attachments)
        advice = "shorten it, or take a larger context"
        if long:
            advice = (
                f"its attachments take {long:,} of them: turn recall on to send the passages that "
                "bear on the question, or attach a part"
            )
        return DoesNotFit(
            f"the message and the system prompt take {size:,} tokens and {self._limit:,} fit "
            f"beside the answer: {advice}"
        )

    def _summary_text(self) -> str:
        return f"Notes on the conversation so far:\n{self._summary.text}" if self._summary else ""

    def plan(self, context: int | None, free: int) -> MemoryPlan:
        """The prompt, and what it is made of."""
        messages, count = self.messages(), self._counter.text
        total = self._counter.prompt(messages)
        parts: list[Part] = []
        if self._system:
            parts.append(Part(kind="system", tokens=count(self._system), text=self._system))
        if summary := self._summary_text():
            why = f"of turns 1 to {self._covered()}"
            parts.append(Part(kind="summary", tokens=count(summary), text=summary, why=why))
        for index, item in enumerate(self._recalled, 1):
            parts.append(
                Part(
                    kind="recalled",
                    tokens=count(_note(index, item)),
                    text=item.passage.text,
                    turn_id=item.passage.turn_id,
                    number=item.passage.number,
                    role=item.passage.source,
                    why=item.why,
                )
            )
        for turn in self._turns[self._begin :]:
            text = turn.text
            if self._without_attachments and turn is self._turns[-1]:
                text = turn.content
            parts.append(
                Part(
                    kind="turn",
                    tokens=count(text),
                    text=text,
                    turn_id=turn.id,
                    number=turn.number,
                    role=turn.role,
                )
            )
        rest = total - sum(part.tokens for part in parts)
        parts.append(Part(kind="template", tokens=rest))
        return MemoryPlan(
            messages=messages,
            parts=parts,
            left_out=self._left_out(),
            prompt_tokens=total,
            context_tokens=context,
            answer_tokens=free,
            exact=self._counter.exact,
        )

    def _covered(self) -> int:
        if self._summary is None:
            return 0
        return next(turn.number for turn in self._turns if turn.id == self._summary.upto_id)

    def _left_out(self) -> list[LeftOut]:
        recalled = {item.passage.turn_id for item in self._recalled}
        covered, found = self._covered(), []
        for turn in self._turns[: self._begin]:
            ways = ["in the summary"] if turn.number <= covered else []
            ways += ["recalled in part"] if turn.id in recalled else []
            found.append(
                LeftOut(
                    turn_id=turn.id,
                    number=turn.number,
                    role=turn.role,
                    tokens=self._counter.text(turn.text),
                    why=", ".join(ways) or "does not fit",
                )
            )
        if self._without_attachments:
            last = self._turns[-1]
            for name, text in last.attachments:
                found.append(
                    LeftOut(
                        turn_id=last.id,
                        number=last.number,
                        role=name,
                        tokens=self._counter.text(text),
                        why="too long: the passages that bear on the question were taken",
                    )
                )
        return found


def _note(index: int, item: Recalled) -> str:
    where = f"turn {item.passage.number}"
    if item.passage.source:
        where = item.passage.source
    return f"[{index}] ({where}) {item.passage.text}\n"


def _notes(recalled: Sequence[Recalled]) -> str:
    lines = "".join(_note(index, item) for index, item in enumerate(recalled, 1))
    return f"From earlier, where it may help:\n{lines}\n"

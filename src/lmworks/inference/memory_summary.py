"""What fell out of the window, in the model's own words.

The model is asked for notes, not for a story: facts, names, numbers and wishes, a line each. Notes
grow: what is new is read together with the notes so far, in parts that fit the context, so that
any length of conversation can be summarised with any context. The notes are the model's, with its
mistakes; a plan shows them (`MemoryPlan.parts`), and the turns themselves stay stored.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmworks.inference.base import ChatModel
from lmworks.inference.memory import (
    Counter,
    DoesNotFit,
    MemorySettings,
    Summary,
    Turn,
    window_start,
)

SUMMARY_TOKENS = 256
_DUE_FROM = 0.7  # of the prompt's limit: notes are ready before they are needed
_KEPT = 0.4  # of it stays in the window beside the notes
_TASK = (
    "You keep notes of a conversation. Write down each fact, name, number, date, decision and wish "
    "in it as one short line. Keep the notes that are there already. Write nothing else."
)


def summary_due(
    turns: Sequence[Turn],
    counter: Counter,
    settings: MemorySettings,
    *,
    system: str = "",
    answer_tokens: int = 512,
    summary: Summary | None = None,
) -> list[Turn]:
    """The turns that should be in the notes and are not yet; none as long as all fits well."""
    limits = [n for n in (counter.context, settings.context_tokens) if n is not None]
    if not turns or not limits:
        return []
    limit = min(limits) - min(answer_tokens, min(limits) // 4)
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    if counter.prompt(messages) < _DUE_FROM * limit:
        return []
    try:
        begin = window_start(turns, counter, int(_KEPT * limit), system=system)
    except DoesNotFit:  # one question larger than that: all before it
        begin = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=0)
    ids = [turn.id for turn in turns]
    done = ids.index(summary.upto_id) + 1 if summary and summary.upto_id in ids else 0
    return list(turns[done:begin])


def summarise(
    model: ChatModel,
    turns: Sequence[Turn],
    counter: Counter,
    previous: Summary | None = None,
    *,
    max_tokens: int = SUMMARY_TOKENS,
) -> Summary:
    """The notes so far and these turns as new notes, up to the last of the turns.

    Args:
        turns: at least one; a turn too long for the context is read from its begin.
    Raises: UserError as `ChatModel.complete`.
    """
    notes = previous.text if previous else ""
    context = counter.context or 4096
    max_tokens = min(max_tokens, context // 4)
    waiting = list(turns)
    while waiting:
        part = [waiting.pop(0)]
        while (
            waiting and counter.prompt(_question(notes, [*part, waiting[0]])) + max_tokens < context
        ):
            part.append(waiting.pop(0))
        messages = _question(notes, part)
        while counter.prompt(messages) + max_tokens >= context:
            shorter = part[-1].content[: len(part[-1].content) // 2]
            part = [
                Turn(id=part[-1].id, number=part[-1].number, role=part[-1].role, content=shorter)
            ]
            if not shorter:
                break
            messages = _question(notes, part)
        answer = model.complete(messages, temperature=0.0, max_tokens=max_tokens)
        notes = answer.text.strip() or notes
    return Summary(upto_id=turns[-1].id, text=notes)


def _question(notes: str, turns: Sequence[Turn]) -> list[dict[str, str]]:
    said = "\n".join(f"{turn.role}: {turn.text}" for turn in turns)
    before = f"Notes so far:\n{notes}\n\n" if notes else ""
    return [
        {"role": "system", "content": _TASK},
        {"role": "user", "content": f"{before}The conversation goes on:\n{said}\n\nAll notes:"},
    ]

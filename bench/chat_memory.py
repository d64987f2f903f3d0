"""Is a fact that was said long ago still known? Window, notes and recall on planted facts.

    python bench/chat_memory.py [--facts 24] [--answers 12] [--ways window,words,meaning]

One conversation: facts about a person's life, each said once, in passing, among exchanges on
other things, so that at its end none of them is in the window. Then each fact is asked for twice,
with the words it was said in, and with others. Counted is whether the fact's answer is in the
prompt that would be sent (the notes are the model's own, written as the talk grew), and for the
first questions whether the model then says it. The same questions go to all ways: pairs.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from pairs import keep

from lmworks.evaluation.statistics import paired_interval
from lmworks.inference.chat import load_chat
from lmworks.inference.memory import MemorySettings, Summary, Turn, plan_prompt
from lmworks.inference.memory_recall import LazyEncoder, RecallByMeaning, RecallByWords
from lmworks.inference.memory_summary import summarise, summary_due
from lmworks.inference.token_counts import TokenCounter

# What is said; what must be known; a question in the same words; one in others.
LINES = Path(__file__).with_name("chat_facts.tsv").read_text(encoding="utf-8").splitlines()
FACTS = [tuple(line.split("\t")) for line in LINES]
TOPIC_WORDS = (
    "bread tides bridges comets paper honey violins glass maps clocks rivers chess salt trains "
    "moss ink bees kites wool lamps caves soap roofs ferns"
)
TOPICS = TOPIC_WORDS.split()
ASIDE = ("How is {} made or formed?", "Tell me one more thing about {}.")
REPLY = (
    "There is much to say about {}. It has a long history, and people in many countries have known "
    "it for centuries, each in their own way."
)


def conversation(num_facts: int) -> list[Turn]:
    said = []
    for (fact, *_), topic in zip(FACTS[:num_facts], TOPICS, strict=False):
        said += [fact + " " + ASIDE[0].format(topic), REPLY.format(topic)]
        said += [ASIDE[1].format(topic), REPLY.format(topic)]
    for topic in TOPICS[:12]:
        said += [ASIDE[1].format(topic), REPLY.format(topic)]
    return [
        Turn(id=f"m{n}", number=n, role="user" if n % 2 else "assistant", content=text)
        for n, text in enumerate(said, 1)
    ]


def notes_of(model, turns, counter, memory) -> Summary | None:
    """As `answers.remember` does, after every answer."""
    notes = None
    for end in range(2, len(turns) + 1, 2):
        due = summary_due(turns[:end], counter, memory, answer_tokens=ANSWER, summary=notes)
        if due:
            notes = summarise(model, due, counter, notes)
    return notes


ANSWER = 32


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--answers", type=int, default=12, help="questions that are answered too")
    parser.add_argument("--facts", type=int, default=len(FACTS))
    parser.add_argument("--ways", default="window,notes,words,meaning,meaning+notes")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model = load_chat(chosen.model, max_batch=1)
    counter = TokenCounter(model)
    turns = conversation(chosen.facts)
    memory = MemorySettings(context_tokens=chosen.context, summary=True)
    started = time.perf_counter()
    notes = notes_of(model, turns, counter, memory) if "notes" in chosen.ways else None
    notes_s = time.perf_counter() - started
    meaning = RecallByMeaning(LazyEncoder("minilm-l6"), _Kept())
    ways = {
        "window": {},
        "notes": {"summary": notes},
        "words": {"recaller": RecallByWords()},
        "meaning": {"recaller": meaning},
        "meaning+notes": {"recaller": meaning, "summary": notes},
    }
    ways = {way: ways[way] for way in chosen.ways.split(",")}
    held = {(way, kind): [] for way in ways for kind in ("same", "other")}
    answered = {(way, kind): [] for way in ways for kind in ("same", "other")}
    tokens = {way: [] for way in ways}
    for index, (_, wanted, same, other) in enumerate(FACTS[: chosen.facts]):
        for kind, question in (("same", same), ("other", other)):
            last = Turn(id="q", number=len(turns) + 1, role="user", content=question)
            for way, extra in ways.items():
                recall = "words" if "recaller" in extra else "off"
                how = MemorySettings(context_tokens=chosen.context, recall=recall)
                plan = plan_prompt([*turns, last], counter, how, answer_tokens=ANSWER, **extra)
                prompt = "\n".join(message["content"] for message in plan.messages)
                held[way, kind].append(float(wanted.lower() in prompt.lower()))
                tokens[way].append(plan.prompt_tokens)
                if index < chosen.answers:
                    answer = model.complete(plan.messages, temperature=0.0, max_tokens=ANSWER)
                    answered[way, kind].append(float(wanted.lower() in answer.text.lower()))
    rows = {}
    for way in ways:
        rows[way] = {"prompt_tokens": sum(tokens[way]) / len(tokens[way])}
        for name, counted in (("held", held), ("answered", answered)):
            for kind in ("same", "other"):
                values = counted[way, kind]
                if values:
                    first = counted[next(iter(ways)), kind]
                    groups = [str(fact) for fact in range(len(values))]
                    over = paired_interval(values, first, [1.0] * len(values), groups)
                    rows[way][f"{name}_{kind}"] = sum(values) / len(values)
                    rows[way][f"{name}_{kind}_over_first"] = [over.estimate, over.low, over.high]
        print(way, json.dumps(rows[way]))
    print(f"notes: {notes_s:.0f} s, {counter.text(notes.text) if notes else 0} tokens")
    print(notes.text if notes else "")
    keep(
        f"chat_memory_{chosen.ways.replace(',', '_')}",
        model=chosen.model,
        context_tokens=chosen.context,
        num_turns=len(turns),
        facts=chosen.facts,
        answered=chosen.answers,
        rows=rows,
        notes=notes.text if notes else "",
        notes_s=notes_s,
    )


class _Kept(dict):
    """Vectors of passages, kept between questions."""

    def get(self, encoder, keys):
        return {key: self[key] for key in keys if key in self}

    def put(self, encoder, vectors):
        self.update(vectors)


if __name__ == "__main__":
    main()

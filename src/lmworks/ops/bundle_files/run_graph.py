"""Ask the model of this folder something: python run.py "your question"

README.md says what it needs. With --tokens it continues token ids that are read from standard
input, a JSON object {"ids": [...], "count": n} per line.
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from runtime import FOLDER, SETTINGS, Model  # type: ignore[import-not-found]


def continued(model: Model, ids: list[int], count: int) -> Iterator[int]:
    ids = list(ids)
    for _ in range(count):
        ids.append(model.next_token(ids))
        yield ids[-1]


def answer_lines() -> None:
    model = Model()
    for line in sys.stdin:
        asked = json.loads(line)
        started = time.perf_counter()
        found = list(continued(model, asked["ids"], asked["count"]))
        seconds = time.perf_counter() - started
        print(json.dumps({"ids": found, "seconds": seconds}), flush=True)


def prompt_of(question: str, tokenizer: Any) -> list[int]:
    template = FOLDER / "chat_template.jinja"
    if not template.is_file():
        return list(tokenizer.encode(question).ids)
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(template.read_text(encoding="utf-8")).render(
        messages=[{"role": "user", "content": question}],
        add_generation_prompt=True,
        bos_token=SETTINGS["bos_token"],
        eos_token=SETTINGS["eos_token"],
    )
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def main() -> None:
    if sys.argv[1:] == ["--tokens"]:
        answer_lines()
        return
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    ids = prompt_of(" ".join(sys.argv[1:]) or "Hello!", tokenizer)
    room = SETTINGS["context_length"] - len(ids)
    found: list[int] = []
    shown = ""
    for token in continued(Model(), ids, min(256, room)):
        if token in SETTINGS["end_token_ids"]:
            break
        found.append(token)
        text = tokenizer.decode(found)
        if not text.endswith("\ufffd"):  # half a character
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print()


if __name__ == "__main__":
    main()

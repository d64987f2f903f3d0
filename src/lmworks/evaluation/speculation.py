"""Stage `speculation`: whether speculative decoding pays here, on one's own prompts.

Each prompt is answered plainly and in every way of speculating, in turns that begin with another
each time, so that whatever else the machine does falls on all of them. Timed is what follows the
first token: reading the prompt is the same for all but a draft, whose own reading counts. The
speed-up is the ratio of the seconds per token, over all prompts and by their kinds, with an
interval over prompts that are drawn anew.

At temperature 0 the answers must be the same to the token, which is checked; above it they are only
alike in distribution, and differ in length.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.files import read_json, write_json, write_text
from lmworks.core.progress import track
from lmworks.core.stages import Run, stage

if TYPE_CHECKING:
    from lmworks.evaluation.statistics import Interval
    from lmworks.inference.engine import Engine

_OWN_PROMPTS = Path(__file__).with_name("speculation_prompts.json")


def default_prompts() -> list[dict[str, Any]]:
    """Nine requests to a chat model of kinds that differ, each with its `messages`."""
    found: list[dict[str, Any]] = json.loads(_OWN_PROMPTS.read_text(encoding="utf-8"))
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeculationConfig:
    """Speculative decoding beside plain decoding: guesses kept, tokens per step, speed-up.

    Examples:
        lmworks eval speculation --model smollm2-135m --out runs/speculation
        lmworks eval speculation --model runs/large --way lookup --way draft=runs/small \\
            --prompts prompts.jsonl
        lmworks eval speculation --model smollm2-135m --way early-exit=8 --always
    """

    model: str = option(role=REFERENCE, help="model folder, GGUF file or reference")
    prompts: str = option(
        "", role=REFERENCE, help='.jsonl of {"prompt"} or {"messages"}, and "kind"; none: our own'
    )
    ways: list[str] = option(
        ["lookup"], help="way to guess: lookup, draft=REF, early-exit=K", repeat="--way"
    )
    always: bool = option(False, help="guess in each step, also where it was seen not to pay")
    max_tokens: int = option(96, help="longest answer, in tokens")
    max_prompts: int = option(0, help="take this many prompts; 0 takes all")
    temperature: float = option(0.0, help="0 is greedy")
    rounds: int = option(1, help="how often each prompt is answered in each way")
    seed: int = option(0, help="same seed, same bytes")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timed:
    """One answer: seconds after its first token, and what came in them."""

    seconds: float
    token_ids: tuple[int, ...]
    proposed: int
    accepted: int
    steps: int

    @property
    def seconds_per_token(self) -> float:
        return self.seconds / max(1, len(self.token_ids) - 1)


@stage("speculation", makes="report")
def speculation(config: SpeculationConfig, run: Run) -> dict[str, Any]:
    """Answer, time, compare; see SpeculationConfig."""
    from lmworks.inference.engine import Engine
    from lmworks.inference.speculative import speculation_for
    from lmworks.models.load import load_language_model
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.threads import set_threads

    if config.rounds < 1 or config.max_tokens < 2 or not config.ways:
        raise UserError("needs a round, answers of at least two tokens, and a way to guess")
    set_threads(config.threads)
    prompts = _prompts(run.inputs.get("prompts", _OWN_PROMPTS), config.max_prompts)
    model = load_language_model(run.inputs["model"], packed=True)
    tokenizer = load_tokenizer(run.inputs["model"])
    with Engine(model, tokenizer, max_batch=1, prefix_tokens=0) as engine:
        ways: dict[str, Any] = {"plain": None}
        for way in config.ways:
            ways[way] = speculation_for(engine, way, always=config.always)
        found: dict[str, list[list[Timed]]] = {way: [] for way in ways}
        with track("answering", total=len(prompts) * len(ways) * config.rounds) as bar:
            for place, prompt in enumerate(prompts):
                ids = _prompt_ids(tokenizer, prompt)
                rounds: dict[str, list[Timed]] = {way: [] for way in ways}
                for number in range(config.rounds):
                    first = (place + number) % len(ways)  # nobody is always the first
                    for way in [*ways][first:] + [*ways][:first]:
                        engine.proposer = ways[way]
                        rounds[way].append(_answer(engine, ids, config, number))
                        bar.advance(1)
                for way, timed in rounds.items():
                    found[way].append(timed)
        engine.proposer = None
    kinds = [str(prompt.get("kind", "all")) for prompt in prompts]
    rows = _rows(found, kinds, config)
    write_json(run.folder / "speculation.json", {"rows": rows})
    write_text(run.folder / "report.md", _markdown(rows, config))
    return {"summary": [_line(row) for row in rows], "speculation": rows}


def _prompts(path: Path, most: int) -> list[dict[str, Any]]:
    """Raises: UserError naming the line that is none."""
    import json

    if path.suffix == ".json":
        prompts = list(read_json(path, "list of prompts"))
    else:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        prompts = []
        for number, line in enumerate(lines, 1):
            try:
                prompts.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{path}, line {number}: no JSON: {error}") from None
    for number, prompt in enumerate(prompts, 1):
        if not isinstance(prompt, Mapping) or not ("prompt" in prompt or "messages" in prompt):
            raise UserError(f"{path}, prompt {number}: needs a prompt or messages")
    if not prompts:
        raise UserError(f"{path}: no prompts: a .jsonl file with one on each line")
    return prompts[: most or None]


def _prompt_ids(tokenizer: Any, prompt: Mapping[str, Any]) -> list[int]:
    from lmworks.inference.local import plain_prompt

    if "prompt" in prompt:
        return list(tokenizer.encode(str(prompt["prompt"])))
    if tokenizer.chat_template:
        return list(tokenizer.encode_chat(prompt["messages"], add_generation_prompt=True))
    return list(tokenizer.encode(plain_prompt(prompt["messages"])))


def _answer(engine: Engine, ids: Sequence[int], config: SpeculationConfig, number: int) -> Timed:
    from lmworks.inference.sampling import Sampling

    seed = None if config.temperature else config.seed + number
    sampling = Sampling(temperature=config.temperature, max_tokens=config.max_tokens, seed=seed)
    steps, _ = engine.statistics.batch_size.snapshot()
    stream = engine.submit(ids, sampling)
    token_ids = [next(stream).token_id]
    began = time.perf_counter()
    token_ids += [event.token_id for event in stream]
    seconds = time.perf_counter() - began
    after, _ = engine.statistics.batch_size.snapshot()
    return Timed(
        seconds=seconds,
        token_ids=tuple(token_ids),
        proposed=stream.proposed_tokens,
        accepted=stream.accepted_tokens,
        steps=after[-1] - steps[-1],
    )


def _rows(
    found: Mapping[str, list[list[Timed]]], kinds: Sequence[str], config: SpeculationConfig
) -> list[dict[str, Any]]:
    """A row for each way over all prompts, and for each kind of them."""
    rows = []
    groups = ["all", *sorted(set(kinds) - {"all"})]
    for way, answers in found.items():
        if way == "plain":
            continue
        for group in groups:
            chosen = [i for i, kind in enumerate(kinds) if group in ("all", kind)]
            theirs = [answers[i] for i in chosen]
            plain = [found["plain"][i] for i in chosen]
            rows.append({"way": way, "prompts": group} | _figures(theirs, plain, config))
    return rows


def _figures(
    theirs: Sequence[list[Timed]], plain: Sequence[list[Timed]], config: SpeculationConfig
) -> dict[str, Any]:
    from lmworks.evaluation.statistics import ratio_interval

    all_theirs = [timed for rounds in theirs for timed in rounds]
    proposed = sum(timed.proposed for timed in all_theirs)
    tokens = sum(len(timed.token_ids) - 1 for timed in all_theirs)
    speed_up: Interval = ratio_interval(
        [_middle(rounds) for rounds in plain],
        [_middle(rounds) for rounds in theirs],
        [str(index) for index in range(len(plain))],
        seed=config.seed,
    )
    same = [a.token_ids == b.token_ids for x, y in zip(theirs, plain) for a, b in zip(x, y)]
    known = {"low": speed_up.low, "high": speed_up.high} if speed_up.known else {}
    return {
        "num_prompts": len(plain),
        "proposed": proposed,
        "acceptance": sum(timed.accepted for timed in all_theirs) / proposed if proposed else 0.0,
        "tokens_per_step": tokens / max(1, sum(timed.steps for timed in all_theirs)),
        "speed_up": speed_up.estimate,
        **known,
        "same_answers": sum(same) if config.temperature == 0 else None,
    }


def _middle(rounds: Sequence[Timed]) -> float:
    """The median seconds per token of a prompt's rounds."""
    ordered = sorted(timed.seconds_per_token for timed in rounds)
    return ordered[len(ordered) // 2]


def _line(row: Mapping[str, Any]) -> str:
    spread = f" [{row['low']:.2f} to {row['high']:.2f}]" if "low" in row else ""
    line = (
        f"{row['way']:14} {row['prompts']:5} {row['num_prompts']:3} prompts: "
        f"{row['acceptance']:.0%} of {row['proposed']} guesses kept, "
        f"{row['tokens_per_step']:.2f} tokens a step, {row['speed_up']:.2f}x the speed{spread}"
    )
    if row["same_answers"] is not None:
        line += f", {row['same_answers']} answers the same"
    return line


def _markdown(rows: Sequence[Mapping[str, Any]], config: SpeculationConfig) -> str:
    head = "| way | prompts | guesses | kept | tokens a step | speed-up | interval | same |"
    lines = ["# Speculative decoding", "", f"Model: {config.model}", "", head, "|---" * 8 + "|"]
    for row in rows:
        spread = f"{row['low']:.2f} to {row['high']:.2f}" if "low" in row else "too few prompts"
        same = "-" if row["same_answers"] is None else row["same_answers"]
        lines.append(
            f"| {row['way']} | {row['prompts']} ({row['num_prompts']}) | {row['proposed']} "
            f"| {row['acceptance']:.0%} | {row['tokens_per_step']:.2f} | {row['speed_up']:.2f} "
            f"| {spread} | {same} |"
        )
    return "\n".join(lines) + "\n"

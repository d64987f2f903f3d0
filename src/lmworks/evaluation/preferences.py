"""Stage `preferences`: how often models agree with held-out preferences, and what they go by.

A reward model is asked for its number; a language model for the answer's likelihood per token, or,
with a reference, for the log-ratio that DPO takes for a reward. Beside the accuracy the report says
whether a model knows how sure it may be, and how much of it is the answer's length. With a judge or
a rule the models answer the prompts themselves, and the report says how often each beats the first
(`win_rate`).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.files import atomic_open, write_json
from lmworks.core.stages import Run, stage

if TYPE_CHECKING:
    import numpy as np

    from lmworks.evaluation.preference_figures import Judgement
    from lmworks.training.preferences.rows import Pair


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalPreferencesConfig:
    """Agreement of models with held-out pairs of answers: accuracy, calibration, length, paired.

    Examples:
        lmworks eval preferences --preferences runs/pairs \\
            --models '{chat: runs/chat, dpo: runs/dpo}'
        lmworks eval preferences --preferences runs/pairs --models '{judge: runs/judge}'
        lmworks eval preferences --preferences runs/pairs --models '{dpo: runs/dpo}' \\
            --reference runs/chat
        lmworks eval preferences --preferences runs/pairs --judge runs/judge \\
            --models '{chat: runs/chat, dpo: runs/dpo}'
        lmworks eval preferences --preferences runs/pairs --rule shorter \\
            --models '{chat: runs/chat, dpo: runs/dpo}'
    """

    models: dict[str, str] = option(role=REFERENCE, help="by name; the first is compared with")
    preferences: str = option(role=REFERENCE, help="folder (heldout.jsonl), or a .jsonl file")
    reference: str = option("", role=REFERENCE, help="score log-ratios to this model")
    judge: str = option("", role=REFERENCE, help="reward model that judges answers written anew")
    rule: str = option(
        "", help="or a rule that does: shorter, longer, chosen, regex:PATTERN, not:PATTERN"
    )
    max_tokens: int = option(64, help="longest answer that is written to be judged")
    head: str = option("", help="the regard that counts, of a reward model with several")
    beta: float = option(0.1, help="what log-ratios are multiplied by to be a reward")
    as_chat: bool = option(False, help="read plain texts as a user's and an assistant's message")
    skip_bad: bool = option(False, help="leave out and count rows that can't be used")
    max_pairs: int = option(0, help="measure this many; 0 takes all")
    seed: int = option(0, help="same seed, same bytes")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@stage("preferences", makes="report")
def eval_preferences(config: EvalPreferencesConfig, run: Run) -> dict[str, Any]:
    """Measure and compare; see EvalPreferencesConfig."""
    from lmworks.evaluation.preference_figures import compare, figures
    from lmworks.training.threads import set_threads

    if not config.models:
        raise UserError("name at least one model: --models '{name: reference}'")
    if config.judge and config.rule:
        raise UserError("either a --judge or a --rule says whose answer is better, not both")
    if (config.judge or config.rule) and len(config.models) < 2:
        raise UserError("a win rate is one model's over another: name two or more in --models")
    if config.max_tokens < 1:
        raise UserError(f"max_tokens = {config.max_tokens}: an answer takes at least one")
    set_threads(config.threads)
    pairs, num_bad = _pairs(config, run.inputs["preferences"])
    judged: dict[str, Judgement] = {}
    for name in config.models:
        judged[name] = _judge(config, run, name, pairs)
    if len({len(one.kept) for one in judged.values()}) > 1:
        judged = _common(judged)
    first, *others = judged
    models = {name: figures(one, seed=config.seed) for name, one in judged.items()}
    gained = {name: compare(judged[name], judged[first], seed=config.seed) for name in others}
    counts = {"num_pairs": len(judged[first].kept), "num_bad": num_bad}
    report = counts | {"models": models, "compared": gained, "compared_with": first}
    rates = _won(config, run, pairs, first, others) if config.judge or config.rule else {}
    write_json(run.folder / "report.json", report | rates)
    shown = ("accuracy", "calibration_error", "length_bias")
    metrics: dict[str, Any] = dict(counts)
    for figure in shown:
        metrics[figure] = {name: one[figure] for name, one in models.items()}
    metrics["accuracy_gained"] = {name: one["accuracy"] for name, one in gained.items()}
    for figure in ("judged_by", "judge_agrees_with_the_pairs"):
        metrics |= {figure: rates[figure]} if rates else {}
    if rates:
        metrics["win_rate"] = {name: one["win_rate"] for name, one in rates["won"].items()}
    return metrics


def _won(
    config: EvalPreferencesConfig, run: Run, pairs: list[Pair], first: str, others: list[str]
) -> dict[str, Any]:
    """How often the others' answers beat the first one's; the answers go into a file."""
    from lmworks.evaluation.win_rate import agreement, reward_judge, rule_judge, win_rate, written

    if config.judge:
        judge = reward_judge(run.inputs["judge"], lambda place: _head(config, place))
    else:
        judge = rule_judge(config.rule)
    said = {
        name: written(run.inputs[f"models.{name}"], pairs, config.max_tokens)
        for name in (first, *others)
    }
    with atomic_open(run.folder / "answers.jsonl", "w", encoding="utf-8", newline="\n") as file:
        for index, pair in enumerate(pairs):
            row = {"prompt": pair.prompt} | {name: texts[index] for name, texts in said.items()}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return {
        "judged_by": judge.name,
        "judge_agrees_with_the_pairs": agreement(judge, pairs, seed=config.seed),
        "won": {
            name: win_rate(judge, pairs, said[name], said[first], seed=config.seed)
            for name in others
        },
    }


def _pairs(config: EvalPreferencesConfig, place: Path) -> tuple[list[Pair], int]:
    from lmworks.training.preferences.rows import BadRow, as_chat, as_pair, read_rows

    path = place / "heldout.jsonl" if place.is_dir() else place
    pairs, bad = [], 0
    for where, row in read_rows(path):
        try:
            pair = as_pair(where, row, [config.head] if config.head else [])
        except BadRow as error:
            if not config.skip_bad:
                raise BadRow(f"{error} (--skip-bad leaves such rows out)") from None
            bad += 1
            continue
        if config.head and not pair.scores.get(config.head):
            continue
        pairs.append(as_chat(pair) if config.as_chat else pair)
    if not pairs:
        raise UserError(f"{path} holds no pair to measure")
    return pairs[: config.max_pairs or None], bad


def _judge(config: EvalPreferencesConfig, run: Run, name: str, pairs: list[Pair]) -> Judgement:
    """What one model makes of the pairs."""
    import numpy as np

    from lmworks.evaluation.preference_figures import Judgement
    from lmworks.models.config import LMHeadConfig
    from lmworks.models.load import load_language_model, load_single_model
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.preferences.batches import Fit, Pairs
    from lmworks.training.preferences.reward_batches import RewardPairs

    place = run.inputs[f"models.{name}"]
    model, tokenizer = load_single_model(place), load_tokenizer(place)
    length = model.config.max_position_embeddings
    plain = [dataclasses.replace(pair, scores={}) for pair in pairs]
    rewards = not isinstance(model.config.head, LMHeadConfig)
    data: Any
    if rewards:
        data = RewardPairs(plain, tokenizer, Fit(length=length - 1), batch_size=8, seed=0)
        scores = _rewards(model, data, _head(config, place))
    else:
        data = Pairs(plain, tokenizer, Fit(length=length), batch_size=8, seed=0)
        scores = _likelihoods(model, data, per_token=not config.reference)
        if config.reference:
            other = load_language_model(run.inputs["reference"])
            scores = config.beta * (scores - _likelihoods(other, data, per_token=False))
    kept = [pair.where for pair in data.pairs]
    by_place = {pair.where: pair for pair in pairs}
    better = [by_place[where].scores.get(config.head, 1.0) for where in kept]
    sign = np.sign(better)
    lengths = data.answer_lengths()
    return Judgement(
        kept=kept,
        difference=sign * (scores[:, 0] - scores[:, 1]),
        longer=sign * (lengths[:, 0] - lengths[:, 1]),
        groups=[by_place[where].group for where in kept],
        is_probability=rewards or bool(config.reference),
    )


def _head(config: EvalPreferencesConfig, place: Path) -> int:
    """The number of the head that counts. Raises: UserError for one the model has not."""
    from lmworks.core.files import read_json

    names = read_json(place / "config.json", "model config").get("id2label") or {"0": "reward"}
    known = [names[str(i)] for i in range(len(names))]
    if not config.head and len(known) > 1:
        raise UserError(f"{place} judges in {', '.join(known)}: choose one with --head")
    if config.head and len(known) > 1 and config.head not in known:
        raise UserError(f"{place} has no head {config.head!r}: it judges in {', '.join(known)}")
    return known.index(config.head) if config.head in known else 0


def _rewards(model: Any, data: Any, head: int) -> np.ndarray:
    """(N, 2) numbers of the chosen and the rejected texts."""
    import numpy as np
    import torch

    from lmworks.core.progress import track
    from lmworks.training.objectives.reward import rewards

    found = np.zeros((len(data), 2))
    with torch.no_grad(), track("judging", total=len(data)) as bar:
        for rows in data.order.epoch(0):
            both = rewards(model, data.collate(rows))[:, head].cpu().numpy()
            found[rows] = both.reshape(2, -1).T
            bar.advance(len(rows))
    return found


def _likelihoods(model: Any, data: Any, *, per_token: bool) -> np.ndarray:
    """(N, 2) log-probabilities of the answers, summed or per token."""
    import numpy as np
    import torch

    from lmworks.core.progress import track
    from lmworks.training.objectives.sequence_logprobs import pair_logprobs

    found = np.zeros((len(data), 2))
    with torch.no_grad(), track("scoring", total=len(data)) as bar:
        for rows in data.order.epoch(0):
            scored = pair_logprobs(model, data.collate(rows))
            both = torch.stack([scored.chosen, scored.rejected], dim=1)
            if per_token:
                both = both / torch.stack([scored.chosen_length, scored.rejected_length], dim=1)
            found[rows] = both.cpu().numpy()
            bar.advance(len(rows))
    return found


def _common(judged: dict[str, Judgement]) -> dict[str, Judgement]:
    """Only the pairs that fit into every model."""
    shared = set.intersection(*(set(one.kept) for one in judged.values()))
    return {name: one.only(shared) for name, one in judged.items()}

"""Beam search: the likeliest whole continuations, instead of the likeliest next tokens in turn.

All beams are rows of one batch over slots of one cache; when beams change places, what the cache
keeps of them does too. The rules are those of transformers' `generate(num_beams=...)`, so that both
give the same beams: a beam that ends must be among the best `num_beams` of its step, and is scored
by its mean log-probability to the power of the length penalty.

Sources: Graves 2012, arXiv 1211.3711, section 3 (beam search for sequences); Wu et al. 2016,
arXiv 1609.08144, section 7 (length normalisation). Left out: groups of diverse beams, and beams in
the shared engine: one request has the model to itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lmworks.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from lmworks.models.model import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beam:
    """One continuation.

    Attributes:
        ids: of the new tokens; the one that ends it is the last.
        logprob: of all of them together, nats.
        score: logprob / len(ids) ** length_penalty, by which beams are ranked.
        ended: by a token that ends a text, and not by the limit.
    """

    ids: tuple[int, ...]
    logprob: float
    score: float
    ended: bool


def beam_search(
    model: Model,
    prompt_ids: Sequence[int],
    *,
    num_beams: int = 4,
    max_tokens: int = 64,
    eos_token_ids: Iterable[int] = (),
    length_penalty: float = 1.0,
    vocab_size: int | None = None,
) -> list[Beam]:
    """The best `num_beams` continuations of a prompt, best first.

    Args:
        eos_token_ids: ids that end a continuation.
        length_penalty: above 0 favours longer ones, below 0 shorter ones.
        vocab_size: ids from there on are never taken: a model's vocabulary may be padded.
    Raises: UserError for an empty prompt, numbers below one, or a prompt that leaves no room.
    """
    import torch

    from lmworks.models.cache import KVCache

    if not prompt_ids:
        raise UserError("the prompt is empty: it needs at least one token")
    if num_beams < 1 or max_tokens < 1:
        raise UserError(f"num_beams = {num_beams}, max_tokens = {max_tokens}: at least one of each")
    most = model.config.max_position_embeddings
    steps = min(max_tokens, most - len(prompt_ids))
    if steps < 1:
        raise UserError(f"a prompt of {len(prompt_ids)} tokens leaves no room in the {most}")
    device = next(model.parameters()).device
    ends = frozenset(eos_token_ids)
    cache = KVCache(model.config, num_beams, len(prompt_ids) + steps, device=device)
    slots = list(range(num_beams))
    running: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    finished: list[Beam] = []
    with torch.inference_mode():
        cache.expect(0, len(prompt_ids))
        prompt = torch.tensor([list(prompt_ids)], device=device)
        logits = model(prompt, cache=cache.view([0]), last_only=True)[:, -1]
        for step in range(steps):
            candidates = _best(logits[:, :vocab_size], running, num_beams, ends)
            last = step + 1 == steps
            finished += [
                _beam(ids, logprob, length_penalty, ends)
                for _, ids, logprob in candidates[:num_beams]
                if ids[-1] in ends or last
            ]
            finished = sorted(finished, key=lambda beam: -beam.score)[:num_beams]
            going_on = [c for c in candidates if c[1][-1] not in ends][:num_beams]
            if last or not going_on or _settled(finished, going_on, num_beams, length_penalty):
                break
            cache.continue_from(slots[: len(going_on)], [row for row, _, _ in going_on])
            running = [(ids, logprob) for _, ids, logprob in going_on]
            tokens = torch.tensor([[ids[-1]] for ids, _ in running], device=device)
            view = cache.view(slots[: len(running)])
            logits = model(tokens, cache=view, last_only=True)[:, -1]
    return finished


def _best(
    logits: torch.Tensor,
    running: Sequence[tuple[tuple[int, ...], float]],
    num_beams: int,
    ends: frozenset[int],
) -> list[tuple[int, tuple[int, ...], float]]:
    """The likeliest (row, ids, logprob) one token on: so many that enough of them do not end."""
    import torch

    sums = torch.tensor([logprob for _, logprob in running], device=logits.device)
    scores = logits.float().log_softmax(-1) + sums[:, None]
    count = min(max(2, 1 + len(ends)) * num_beams, scores.numel())
    found = scores.flatten().topk(count)
    return [
        (
            index // scores.shape[1],
            (*running[index // scores.shape[1]][0], index % scores.shape[1]),
            s,
        )
        for index, s in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    ]


def _beam(ids: tuple[int, ...], logprob: float, penalty: float, ends: frozenset[int]) -> Beam:
    score = logprob / len(ids) ** penalty
    return Beam(ids=ids, logprob=logprob, score=score, ended=ids[-1] in ends)


def _settled(
    finished: Sequence[Beam],
    going_on: Sequence[tuple[int, tuple[int, ...], float]],
    num_beams: int,
    penalty: float,
) -> bool:
    """Whether no running beam can still displace a finished one, at its present length."""
    if len(finished) < num_beams:
        return False
    _, ids, logprob = going_on[0]
    return logprob / len(ids) ** penalty <= finished[-1].score

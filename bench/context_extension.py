"""Passkeys beyond the trained context, without training: which scaling of positions finds them.

    python bench/context_extension.py --methods native,yarn,ntk,abf,pi --trials 20

A text with a passkey in it and the question for it. Reading 32,768 tokens takes a CPU minutes per
trial and method; positions alone decide whether rotary angles were ever learned, so by default a
prompt of `--tokens` is laid over the long span: text, passkey and question stand where they would,
with gaps between pieces of the text. What many more tokens add (other places that attention could
go to) is not in it; `--whole` reads prompts of the full length.

`native` is the model itself at its own context, the others at `--factor` times that. Prompts are
the same for all. Prints shares with Wilson's intervals, nats per token of the passkey, and both
against `native`, paired over trials.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

from lmworks.evaluation.statistics import mean_interval, share_interval
from lmworks.models.context_scaling import extended
from lmworks.models.load import load_language_model
from lmworks.models.skeleton import skeleton
from lmworks.tokenizers.load import load_tokenizer

NAMES = ("Alice", "Boris", "Clara", "David", "Elena", "Frank", "Grace", "Henry", "Irene", "Jacob")
GAPS = 6


def python_docs() -> str:
    """The topics of Python's documentation, which come with every Python."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def prompt(
    tokenizer: Any, text: np.ndarray, tokens: int, span: int, depth: float, seed: int
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Ids up to the passkey, their positions (the last is near `span`), and the passkey's ids."""
    random = np.random.default_rng([seed, tokens])
    name, value = NAMES[random.integers(len(NAMES))], str(random.integers(10000, 99999))
    fact = f"The pass key of {name} is {value}."
    needle = tokenizer.encode(f"\n\n{fact} Remember it. {fact}\n\n")
    question = tokenizer.encode(f"\n\nWhat is the pass key of {name}? The pass key of {name} is")
    answer = tokenizer.encode(f" {value}")
    first = [i for i in [tokenizer.bos_token_id] if i is not None]
    room = tokens - len(first) - len(needle) - len(question) - len(answer)
    start = int(random.integers(len(text) - room))
    hay, at = text[start : start + room].tolist(), round(depth * room)
    ids = np.array([*first, *hay[:at], *needle, *hay[at:], *question])
    positions, gap = np.arange(len(ids)), span - tokens
    before = [len(first) + at * i // (GAPS // 2 + 1) for i in range(1, GAPS // 2 + 1)]
    behind = [len(first) + at + len(needle) + (room - at) * i // (GAPS // 2 + 1)
              for i in range(1, GAPS // 2 + 1)]  # fmt: skip
    for places, share in ((before, depth), (behind, 1 - depth)):
        for place in places:
            positions[place:] += int(gap * share / len(places))
    return ids, positions, answer


@torch.inference_mode()
def score(
    model: Any, ids: np.ndarray, positions: np.ndarray, answer: list[int]
) -> tuple[bool, float]:
    """Whether greedy decoding gives the passkey, and its mean log-probability."""
    whole = torch.from_numpy(np.concatenate([ids, answer[:-1]]))[None]
    places = np.concatenate([positions, positions[-1] + np.arange(1, len(answer))])
    told = None if (places == np.arange(len(places))).all() else torch.from_numpy(places)[None]
    hidden = model.hidden_states(whole, positions=told)[0, -len(answer) :]
    logits, target = model.logits(hidden).float(), torch.tensor(answer)
    nats = -torch.nn.functional.cross_entropy(logits, target)
    return bool((logits.argmax(-1) == target).all()), float(nats)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--methods", default="native,yarn,ntk,abf,pi,llama3,none")
    parser.add_argument("--factor", type=float, default=4.0)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=320)
    parser.add_argument("--whole", action="store_true", help="prompts as long as the context")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    base, tokenizer = load_language_model(given.model), load_tokenizer(given.model)
    text = np.array(tokenizer.encode(python_docs()))
    native = base.config.max_position_embeddings
    first: dict[str, np.ndarray] = {}
    for name in given.methods.split(","):
        model, span = base, native
        if name != "native":
            config = extended(base.config, factor=given.factor, method=name, keep_native=False)
            model, span = skeleton(config), config.max_position_embeddings
            model.load_state_dict(base.state_dict(), assign=True)
        tokens, began, rows = span if given.whole else given.tokens, time.perf_counter(), []
        for trial in range(given.trials):
            depth = 0.1 + 0.8 * (trial + 0.5) / given.trials
            rows.append(score(model.eval(), *prompt(tokenizer, text, tokens, span, depth, trial)))
        exact, nats = (np.array(column, dtype=float) for column in zip(*rows))
        share = share_interval(int(exact.sum()), len(exact))
        line = f"{name:8} {span:6,} tokens  found {share.estimate:4.0%}"
        line += f" [{share.low:.0%}, {share.high:.0%}]"
        line += f"  {nats.mean():+.3f} nats"
        if first and not given.whole:
            for what, mine in (("found", exact), ("nats", nats)):
                change = mean_interval(mine - first[what])
                line += f"  {what} {change.estimate:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"
        if name == "native":
            first = {"found": exact, "nats": nats}
        print(line, f" {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()

"""Vectors per second of all-MiniLM-L6: ours beside transformers, the same weights and threads.

    python bench/embedding.py                   # passages of 128 tokens, and texts of many lengths
    python bench/embedding.py --threads 1 --texts 64

transformers gets the batches that its users make: texts in their order, padded to the longest of
32; and once more sorted by length, as sentence-transformers does.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from pairs import report, take_turns

from lmworks.core.references import resolve
from lmworks.inference.embedding import load_embedder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    folder = resolve(given.model).path
    embedder = load_embedder(folder)

    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def theirs(texts: Sequence[str], *, by_length: bool) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i])) if by_length else None
        order = order or list(range(len(texts)))
        found = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), 32):
            numbers = order[start : start + 32]
            batch = tokenizer(
                [texts[i] for i in numbers],
                padding=True,
                truncation=True,
                max_length=256,
                return_tensors="pt",
            )
            mask = batch["attention_mask"][..., None]
            pooled = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            found[numbers] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
        return found

    random = np.random.default_rng(0)
    words = [
        "the",
        "of",
        "and",
        "a",
        "model",
        "reads",
        "text",
        "from",
        "one",
        "line",
        "to",
        "many",
        "others",
        "in",
        "its",
        "own",
        "time",
    ]
    kinds = {
        "128_tokens": [126] * given.texts,
        "many_lengths": [int(n) for n in random.lognormal(3.2, 0.9, given.texts).clip(2, 250)],
    }
    for kind, lengths in kinds.items():
        texts = [" ".join(random.choice(words, length)) for length in lengths]
        apart = float(np.abs(embedder.encode(texts) - theirs(texts, by_length=True)).max())
        print(f"{kind}: {len(texts)} texts; vectors differ by {apart:.1e} at most")
        seconds = take_turns(
            {
                "lmworks": lambda texts=texts: embedder.encode(texts),
                "transformers": lambda texts=texts: theirs(texts, by_length=False),
                "transformers, by length": lambda texts=texts: theirs(texts, by_length=True),
            },
            given.rounds,
        )
        claim = f"embedding_{kind}"
        report(
            claim, "texts/s", len(texts), seconds, largest_difference=apart, settings=vars(given)
        )


if __name__ == "__main__":
    main()

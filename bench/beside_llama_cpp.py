"""Our engine beside llama.cpp on the files that we write: logits, and the greedy text of prompts.

    python bench/beside_llama_cpp.py --types Q8_0,Q4_0 --prompts 50 --tokens 256

Needs `pip install llama-cpp-python`. Our engine continues the prompts greedily from the quantised
file. llama.cpp then reads these texts, and at each place its likeliest token is compared with ours:
equal at all places is equal greedy text. It reads them twice: as the file is (when it rounds the
inputs of each product to 8 bits), and from the same numbers written as float32, when nothing but
the order of sums is different. Keys and values are float32 unless `--cache f16`.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from pairs import keep

from lmworks.compression.quantize import QuantizeConfig, quantize
from lmworks.core.gguf import LaterTensor, dequantize, read_gguf, write_gguf
from lmworks.data.python_docs import read_python_docs
from lmworks.models.block_rounding import ggml_activations
from lmworks.models.cache import KVCache
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.tokenizers.load import load_tokenizer

PROMPT_TOKENS = 24
CACHES = {"f32": 0, "f16": 1}
QUIET = llama_cpp.llama_log_callback(lambda *_: None)  # kept: C calls it


def greedy(model: Model, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """The prompts, all of one length, with the likeliest tokens after them."""
    with torch.inference_mode():
        cache = KVCache(model.config, len(prompts), PROMPT_TOKENS + num_tokens)
        view = cache.view(list(range(len(prompts))))
        rows = torch.tensor(prompts)
        logits = model(rows, cache=view, last_only=True)
        for _ in range(num_tokens):
            token = logits.argmax(-1)
            rows = torch.cat([rows, token], dim=1)
            logits = model(token, cache=view, last_only=True)
    return rows.tolist()


def theirs(path: Path, rows: list[list[int]], cache: str) -> Iterator[np.ndarray]:
    """llama.cpp's logits (tokens, vocabulary) of each row."""
    c, length = llama_cpp, len(rows[0])
    settings = c.llama_model_default_params()
    settings.use_extra_bufts = False  # no layouts of its own, whose sums round otherwise
    model = c.llama_model_load_from_file(str(path).encode(), settings)
    options = c.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = max(512, length)
    options.type_k = options.type_v = CACHES[cache]
    options.flash_attn_type = 0
    context = c.llama_init_from_model(model, options)
    vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
    for row in rows:
        c.llama_memory_clear(c.llama_get_memory(context), True)
        batch = c.llama_batch_init(length, 0, 1)
        batch.n_tokens = length
        for i, token in enumerate(row):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, 1
        if c.llama_decode(context, batch) != 0:
            raise SystemExit(f"llama.cpp did not read {path}")
        logits = np.ctypeslib.as_array(c.llama_get_logits(context), shape=(length, vocabulary))
        yield logits.copy()
        c.llama_batch_free(batch)
    c.llama_free(context)
    c.llama_model_free(model)


def as_floats(path: Path, out: Path) -> Path:
    """The same numbers, each tensor float32."""
    file = read_gguf(path)
    tensors = {
        name: LaterTensor(
            name=name,
            shape=tensor.shape,
            type="F32",
            make=lambda tensor=tensor: dequantize(tensor).reshape(-1).view(np.uint8),
        )
        for name, tensor in file.tensors.items()
    }
    write_gguf(out, file.metadata | {"general.file_type": 0}, tensors)
    return out


@dataclasses.dataclass
class Agreement:
    """Of one file with one way of reading it."""

    largest: float = 0.0  # difference of logits
    texts: int = 0  # with all tokens equal
    tokens: int = 0
    compared: int = 0
    margins: list[float] = dataclasses.field(default_factory=list)

    def add(self, row: list[int], ours: np.ndarray, logits: np.ndarray) -> None:
        """One text: its tokens, our logits and theirs, (tokens, vocabulary)."""
        self.largest = max(self.largest, float(np.abs(ours - logits).max()))
        said, likeliest = np.array(row[PROMPT_TOKENS:]), logits[PROMPT_TOKENS - 1 : -1].argmax(-1)
        other = np.flatnonzero(said != likeliest)
        self.texts += not len(other)
        self.tokens += int((said == likeliest).sum())
        self.compared += len(said)
        for at in other:  # how near the two tokens are to each other for us
            place = ours[PROMPT_TOKENS - 1 + at]
            self.margins.append(float(place[said[at]] - place[likeliest[at]]))

    def told(self) -> dict[str, object]:
        """For the table."""
        return {
            "max_logit_difference": self.largest,
            "equal_texts": self.texts,
            "equal_tokens": self.tokens / max(1, self.compared),
            "largest_margin_where_not": max(self.margins, default=0.0),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--types", default="Q8_0,Q4_0")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--cache", choices=CACHES, default="f32")
    args = parser.parse_args()
    llama_cpp.llama_log_set(QUIET, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    tokenizer, texts = load_tokenizer(args.model), read_python_docs()
    prompts = [ids for d in texts if len(ids := tokenizer.encode(d.text[:400])) >= PROMPT_TOKENS]
    prompts = [ids[:PROMPT_TOKENS] for ids in prompts[:: max(1, len(prompts) // args.prompts)]]
    rows = []
    for kind in args.types.split(","):
        with tempfile.TemporaryDirectory() as folder:
            out = quantize(QuantizeConfig(model=args.model, type=kind), f"{folder}/out").path
            file = out / "model.gguf"
            model = load_model(file, packed=True)
            said = greedy(model, prompts[: args.prompts], args.tokens)
            floats = as_floats(file, Path(folder) / "floats.gguf")
            for way, path in (("float32 of the same numbers", floats), ("the file", file)):
                found = Agreement()
                for row, logits in zip(said, theirs(path, said, args.cache), strict=True):
                    with torch.inference_mode():
                        found.add(row, model(torch.tensor([row]))[0].numpy(), logits)
                rows.append({"type": kind, "read": way} | found.told())
                print(rows[-1], flush=True)
            found = Agreement()
            with ggml_activations(model):
                for row, logits in zip(said, theirs(file, said, args.cache), strict=True):
                    with torch.inference_mode():
                        found.add(row, model(torch.tensor([row]))[0].numpy(), logits)
            rows.append({"type": kind, "read": "the file, ours rounded alike"} | found.told())
            print(rows[-1], flush=True)
    keep("llama_cpp", rows=rows, prompts=args.prompts, tokens=args.tokens, cache=args.cache)


if __name__ == "__main__":
    main()

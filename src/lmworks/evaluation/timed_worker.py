"""One model in a process of its own, which answers when told to and says how long it took.

    python -m lmworks.evaluation.timed_worker

The first line it reads is a job (see `timed_models.Job`), each further line asks for one round. It
writes a line of JSON for each: what was loaded, then seconds. What a model takes of memory, and
what other threads or another way to read weights are worth, is a process's own affair: measured
beside other models in one process, it would be theirs as well.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any


def main(lines: IO[str], out: IO[str]) -> None:
    """Load, then answer a round for each line; a failure is a line too, and the end."""
    from lmworks.core.errors import UserError

    def tell(**values: Any) -> None:
        out.write(json.dumps(values) + "\n")
        out.flush()

    try:
        job = json.loads(lines.readline())
        with _engine(job) as engine:
            from lmworks.models.fused_step import why_not_fused
            from lmworks.models.size import held_bytes

            _round(engine, job, 2)  # kernels are loaded and pages mapped before the clock runs
            tell(
                weight_bytes=held_bytes(engine.model),
                not_fused=why_not_fused(engine.model) or "",
            )
            for _ in lines:
                seconds = _round(engine, job, job["answer_tokens"])
                tell(**seconds, peak_memory_bytes=_peak_bytes())
    except UserError as error:
        tell(error=str(error))


def _engine(job: Mapping[str, Any]) -> Any:
    import torch

    from lmworks.core.machine import usable_cores
    from lmworks.inference.engine import Engine
    from lmworks.inference.speculative import speculation_for
    from lmworks.models.load import load_language_model
    from lmworks.tokenizers.load import load_tokenizer

    torch.set_num_threads(job["threads"] or usable_cores())
    model = load_language_model(job["model"], packed=job["packed"])
    settings = {
        "max_batch": len(job["prompts"]),
        "max_positions": max(map(len, job["prompts"])) + job["answer_tokens"] + 1,
        "prefix_tokens": 0,  # each round reads its prompts anew
    }
    engine = Engine(model, load_tokenizer(job["model"]), **{**settings, **job["engine"]})
    if job["speculate"]:
        engine.proposer = speculation_for(engine, job["speculate"])
    return engine


def _round(engine: Any, job: Mapping[str, Any], answer_tokens: int) -> dict[str, float]:
    """All prompts at the same time: seconds until each has its first token, and from then on."""
    from lmworks.inference.sampling import Sampling

    never = dict.fromkeys(engine.eos_token_ids, -100.0)  # all answers are equally long
    sampling = Sampling(temperature=0, max_tokens=answer_tokens, logit_bias=never)
    began = time.perf_counter()
    streams = [engine.submit(ids, sampling) for ids in job["prompts"]]
    for stream in streams:
        next(stream)
    first = time.perf_counter()
    for stream in streams:
        for _ in stream:
            pass
    return {"prompt_s": first - began, "decode_s": time.perf_counter() - first}


def _peak_bytes() -> int:
    """The most memory that this process held. What the system tells of a child that was started by
    a larger process (ru_maxrss) is that one's."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)

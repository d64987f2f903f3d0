"""Ask the model of this folder something: python run.py "your question"

Needs: pip install xllamacpp (llama.cpp). Where llama.cpp's own programs are installed, run.sh does
the same. With --tokens it continues token ids that are read from standard input, a JSON object
{"ids": [...], "count": n} per line.
"""

import json
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import xllamacpp

FOLDER = Path(__file__).parent
SETTINGS = json.loads((FOLDER / "settings.json").read_text(encoding="utf-8"))


def server() -> "xllamacpp.Server":
    params = xllamacpp.CommonParams()
    params.model.path = str(FOLDER / SETTINGS["model"])
    params.n_ctx, params.n_parallel = SETTINGS["context_length"], 1
    params.n_batch = params.n_ubatch = SETTINGS["batch"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = SETTINGS["threads"]
    for name in ("cache_type_k", "cache_type_v"):
        kind = f"GGML_TYPE_{SETTINGS['cache_type'].upper()}"
        setattr(params, name, getattr(xllamacpp.ggml_type, kind))
    params.use_jinja = True
    params.warmup = params.fit_params = False
    params.cache_ram_mib, params.verbosity = 0, -1
    return xllamacpp.Server(params)


def ask(running: "xllamacpp.Server", path: str, body: dict[str, Any]) -> dict[str, Any]:
    data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(running.listening_address + path, data, kind)
    with urllib.request.urlopen(request) as response:
        answer: dict[str, Any] = json.loads(response.read())
    return answer


def answer_lines() -> None:
    running = server()
    for line in sys.stdin:
        asked = json.loads(line)
        plain = {"temperature": 0, "return_tokens": True, "cache_prompt": True}
        started = time.perf_counter()
        body = {"prompt": asked["ids"], "n_predict": asked["count"]} | plain
        found = ask(running, "/completion", body)["tokens"]
        seconds = time.perf_counter() - started
        print(json.dumps({"ids": found, "seconds": seconds}), flush=True)


def main() -> None:
    if sys.argv[1:] == ["--tokens"]:
        answer_lines()
        return
    question = " ".join(sys.argv[1:]) or "Hello!"
    said = {"messages": [{"role": "user", "content": question}], "max_tokens": 256}
    found = ask(server(), "/v1/chat/completions", said | {"temperature": 0})
    print(found["choices"][0]["message"]["content"])


if __name__ == "__main__":
    main()

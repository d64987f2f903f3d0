"""llama.cpp's HTTP server out of the package xllamacpp, as a process: `python -m` this module.

It takes the few options of `llama-server` that lmworks gives, under the same names.
"""

from __future__ import annotations

import argparse
import signal
import threading


def main() -> None:
    """Serve until SIGTERM."""
    import xllamacpp

    parser = argparse.ArgumentParser(prog="lmworks.serving.llama_cpp")
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--ctx-size", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.model_alias = {options.alias}
    params.hostnames = [options.host]
    params.port = options.port
    params.n_parallel = options.parallel
    params.n_ctx = options.ctx_size
    if options.threads:
        params.cpuparams.n_threads = options.threads
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server = xllamacpp.Server(params)
    print(f"listening at {server.listening_address}", flush=True)
    while not ended.wait(1.0):
        pass
    del server


if __name__ == "__main__":
    main()

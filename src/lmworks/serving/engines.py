"""Models that another engine computes, behind the same API: vLLM, or llama.cpp's own server.

The engine runs as a process of its own on a free port of loopback, started and ended with the
server, or somewhere else (`url`). To the rest of the server it is a `ChatModel` like any other, so
the API, its errors, its metrics and the chat page stay what they are.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lmworks.core.errors import MissingExtra, UserError, unknown_name
from lmworks.core.references import resolve
from lmworks.serving.servers import free_port, started_server

if TYPE_CHECKING:
    from lmworks.inference.base import ChatModel

ENGINES = ("lmworks", "vllm", "llama.cpp")


@contextlib.contextmanager
def engine_models(
    engine: str,
    references: Mapping[str, str],
    *,
    url: str = "",
    arguments: Sequence[str] = (),
    max_batch: int = 8,
    max_positions: int | None = None,
) -> Iterator[dict[str, ChatModel]]:
    """The models by name, each behind a server of `engine`, which ends with the block.

    Args:
        references: by the name that clients ask for.
        url: of a server that runs already, up to and with `/v1`; references are its models' names.
        arguments: handed to the engine's program as they are.
    Raises: UserError when the engine is not installed, can't have such a model, or does not start.
    """
    if engine not in ENGINES[1:]:
        raise unknown_name("engine", engine, ENGINES)
    from lmworks.inference.remote import RemoteChat

    with contextlib.ExitStack() as stack:
        models: dict[str, ChatModel] = {}

        def remote(name: str, where: str, model: str) -> None:
            models[name] = chat = RemoteChat(where, model)
            stack.callback(chat.close)

        for name, reference in references.items():
            if url:
                remote(name, url, reference)
                continue
            port = free_port()
            if engine == "vllm":
                command = vllm_command(name, reference, port, max_batch, max_positions)
            else:
                command = llama_command(name, reference, port, max_batch, max_positions)
            address = f"http://127.0.0.1:{port}"
            what = f"{engine} with {name}"
            running = started_server([*command, *arguments], f"{address}/health", what=what)
            stack.enter_context(running)
            remote(name, f"{address}/v1", name)
        yield models


def vllm_command(
    name: str, reference: str, port: int, max_batch: int, max_positions: int | None
) -> list[str]:
    """How vLLM is started; it fetches `hf:` references itself."""
    program = shutil.which("vllm")
    if program is None:
        raise UserError(
            "the program vllm is not here: pip install vllm (on a machine with a GPU), or name a "
            "server that runs already with --engine-url http://HOST:PORT/v1"
        )
    is_hub = reference.startswith("hf:")
    model = reference.removeprefix("hf:") if is_hub else str(resolve(reference).path or reference)
    command = [program, "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--served-model-name", name, "--max-num-seqs", str(max_batch)]
    if max_positions:
        command += ["--max-model-len", str(max_positions)]
    return command


def llama_command(
    name: str, reference: str, port: int, max_batch: int, max_positions: int | None
) -> list[str]:
    """How llama.cpp's server is started: the program if it is here, else the one in xllamacpp."""
    file = _gguf(reference)
    if program := shutil.which("llama-server"):
        command = [program]
    elif find_spec("xllamacpp"):
        command = [sys.executable, "-m", "lmworks.serving.llama_cpp"]
    else:
        raise MissingExtra("xllamacpp", "llamacpp", "--engine llama.cpp")
    context = (max_positions or 2048) * max_batch  # it is divided among the slots there
    command += ["--model", str(file), "--alias", name, "--host", "127.0.0.1", "--port", str(port)]
    return [*command, "--parallel", str(max_batch), "--ctx-size", str(context)]


def _gguf(reference: str) -> Path:
    path = resolve(reference).path
    found = (
        [path] if path and path.suffix == ".gguf" else sorted(path.glob("*.gguf")) if path else []
    )
    if len(found) != 1:
        raise UserError(f"{reference}: llama.cpp needs one .gguf file, here are {len(found)}")
    return found[0]

"""Start a command as many processes: here, through Slurm, or through Kubernetes.

What is started is the command itself, `lmworks ... --recipe config.yaml --out OUT`, once for each
process; RANK and its like tell a process which one it is, and `Trainer` takes the plan of
`loop.parallel`. So any stage that trains can be started like this.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from lmworks.core.config import option
from lmworks.core.errors import UserError
from lmworks.core.files import write_text
from lmworks.core.progress import say

_GRACE_S = 30.0  # between a process's death and the end of those that don't see it
LAUNCHERS = ("torchrun", "slurm", "k8s")
_CLI = "lmworks.cli.main"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """Where processes run, and what each is given."""

    nproc: int = option(0, help="processes on each machine; 0: one per GPU, or 2 without")
    nodes: int = option(1, help="machines")
    node_rank: int = option(0, help="torchrun: the number of this machine")
    master: str = option("", help="torchrun on several machines: HOST:PORT of the first")
    gpus: int = option(0, help="slurm, k8s: GPUs of each machine")
    cpus: int = option(1, help="slurm, k8s: CPU cores of each process")
    memory: str = option("", help="slurm, k8s: memory of each machine, such as 64Gi")
    time: str = option("", help="slurm: time limit, such as 04:00:00")
    partition: str = option("", help="slurm: partition")
    account: str = option("", help="slurm: account")
    setup: str = option("", help="slurm: a shell line before the start, such as module load")
    python: str = option("python", help="slurm, k8s: the interpreter that has lmworks")
    image: str = option("", help="k8s: container image that has lmworks")
    namespace: str = option("default", help="k8s: namespace")
    volume: str = option("", help="k8s: claim of the volume that all pods share, mounted at /work")
    submit: bool = option(True, help="slurm, k8s: hand the job over where sbatch or kubectl is")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What each process runs.

    Attributes:
        words: of the command line, such as `train pretrain`.
        settings: the whole config as YAML, which goes into a file.
        out: the folder to make.
        flags: further arguments.
    """

    words: tuple[str, ...]
    settings: str
    out: str
    flags: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the files of a launch go: beside `out`."""
        out = Path(self.out)
        return out.with_name(out.name + ".launch")

    def arguments(self, recipe: str) -> list[str]:
        return [*self.words, "--recipe", recipe, "--out", self.out, *self.flags]

    @property
    def job_name(self) -> str:
        """A name that Slurm and Kubernetes take: lower case letters, digits, dashes."""
        name = re.sub(r"[^a-z0-9]+", "-", f"lmworks-{Path(self.out).name}".lower()).strip("-")
        return name[:52].rstrip("-")


def launch(kind: str, command: Command, config: LaunchConfig, *, dry_run: bool = False) -> int:
    """Write what the launcher needs and start it, where it can be started from here.

    Returns: the exit status; 0 for a job that was written or handed over.
    Raises: UserError for an unknown launcher or settings that it can't use.
    """
    if kind not in LAUNCHERS:
        from lmworks.core.errors import unknown_name

        raise unknown_name("launcher", kind, LAUNCHERS)
    for name in ("nodes", "cpus"):
        if getattr(config, name) < 1:
            raise UserError(f"launch: {name} = {getattr(config, name)}: it must be at least 1")
    recipe = command.folder / "config.yaml"
    write_text(recipe, command.settings)
    if kind == "torchrun":
        config = with_processes(config)
        if dry_run:
            say(f"  would start {config.nproc} processes here with {recipe}")
            return 0
        return start_here(command.arguments(str(recipe)), config)
    from lmworks.training.distributed.jobs import kubernetes_manifest, slurm_script

    if kind == "slurm":
        path = command.folder / "job.sbatch"
        write_text(path, slurm_script(command, str(recipe.resolve()), config))
        return _hand_over(["sbatch", str(path)], path, config.submit and not dry_run)
    path = command.folder / "job.yaml"
    write_text(path, kubernetes_manifest(command, config))
    return _hand_over(["kubectl", "apply", "-f", str(path)], path, config.submit and not dry_run)


def _hand_over(start: list[str], path: Path, submit: bool) -> int:
    line = " ".join(start)
    if not submit or shutil.which(start[0]) is None:
        why = "" if not submit else f", since {start[0]} is not here"
        say(f"  wrote {path}; not started{why}: {line}")
        return 0
    return subprocess.run(start, check=False).returncode


def with_processes(config: LaunchConfig) -> LaunchConfig:
    """`nproc` filled in: as many as GPUs, or 2."""
    if config.nproc:
        if config.nproc < 1:
            raise UserError(f"--nproc {config.nproc}: start at least 1 process")
        return config
    import torch

    return dataclasses.replace(config, nproc=torch.cuda.device_count() or 2)


def start_here(
    arguments: list[str], config: LaunchConfig, *, module: str = _CLI, cpu: bool = False
) -> int:
    """Run a module with ARGUMENTS as `config.nproc` processes of this machine; wait for them.

    Args:
        module: `lmworks` itself unless another is named.
        cpu: hide GPUs from the processes.

    Process 0 speaks; of the others, errors are kept and shown when nobody else said why. SIGINT
    and SIGTERM are handed on. Returns: the first status that is no success, or 128 + N of a process
    that signal N ended.
    """
    host, port = _meeting_point(config)
    children: list[subprocess.Popen[bytes]] = []
    errors: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(config.nproc)]  # noqa: SIM115
    handed = {number: signal.signal(number, _hand_on(children)) for number in _HANDED}
    try:
        for local in range(config.nproc):
            place = _place(config, local, host, port)
            if cpu:
                place["CUDA_VISIBLE_DEVICES"] = ""
            children.append(_start(module, arguments, place, errors[local]))
        return _wait(children, config, errors)
    finally:
        for number, former in handed.items():
            signal.signal(number, former)
        for child in children:
            if child.poll() is None:
                child.kill()
                child.wait()
        for kept in errors:
            kept.close()


_HANDED = (signal.SIGINT, signal.SIGTERM)


def _hand_on(children: list[subprocess.Popen[bytes]]) -> Callable[[int, object], None]:
    def hand(number: int, frame: object) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    return hand


def _meeting_point(config: LaunchConfig) -> tuple[str, int]:
    if config.nodes == 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return "127.0.0.1", int(probe.getsockname()[1])
    master = config.master or f"{os.environ.get('MASTER_ADDR', '')}:29500"
    host, _, port = master.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(
            f"several machines meet at one of them: --launch-set master=HOST:PORT, not {master!r}"
        )
    return host, int(port)


def _place(config: LaunchConfig, local: int, host: str, port: int) -> dict[str, str]:
    place = {
        "RANK": config.node_rank * config.nproc + local,
        "WORLD_SIZE": config.nodes * config.nproc,
        "LOCAL_RANK": local,
        "LOCAL_WORLD_SIZE": config.nproc,
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
        # What the network says of a dead process is said in one line by the others.
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
    }
    return {name: str(value) for name, value in place.items()}


def _start(
    module: str, arguments: list[str], place: dict[str, str], errors: IO[bytes]
) -> subprocess.Popen[bytes]:
    main = place["RANK"] == "0"
    quiet = ["--quiet"] if module == _CLI and not main else []
    # A session of its own: Ctrl-C in the terminal must reach a process once, through `_hand_on`.
    return subprocess.Popen(
        [sys.executable, "-m", module, *quiet, *arguments],
        env=os.environ | place,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=None if main else subprocess.DEVNULL,
        stderr=None if main else errors,
    )


def _wait(
    children: list[subprocess.Popen[bytes]], config: LaunchConfig, errors: list[IO[bytes]]
) -> int:
    """Until all have ended; some time after one died, the rest is ended."""
    died: float | None = None
    first: int | None = None
    while any(child.poll() is None for child in children):
        failed = [i for i, child in enumerate(children) if child.poll() not in (None, 0)]
        if failed and died is None:
            died, first = time.monotonic(), failed[0]
        if died is not None and time.monotonic() - died > _GRACE_S:
            for child in children:
                if child.poll() is None:
                    child.kill()
        time.sleep(0.1)
    statuses = [child.returncode for child in children]
    if first is None:
        first = next((i for i, status in enumerate(statuses) if status), None)
    if first is None:
        return 0
    if statuses[0] <= 0:
        _show_errors(children, errors)
    if statuses[first] < 0:
        name = signal.Signals(-statuses[first]).name
        rank = config.node_rank * config.nproc + first
        sys.stderr.write(
            f"lmworks: process {rank} was ended by {name}: the same command goes on from the last "
            "checkpoint\n"
        )
        return 128 - statuses[first]
    return next(status for status in statuses if status > 0)


def _show_errors(children: list[subprocess.Popen[bytes]], errors: list[IO[bytes]]) -> None:
    """What a silent process said last, when the speaking one could not."""
    for child, said in zip(children, errors, strict=True):
        if child.returncode > 0:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            sys.stderr.write("\n".join(lines[-1:]) + "\n")
            return

"""Launchers: what they write is valid, and a status that means "start again" does so."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmworks.core import progress
from lmworks.core.errors import UserError
from lmworks.training.distributed.jobs import kubernetes_manifest, slurm_script
from lmworks.training.distributed.launch import Command, LaunchConfig, launch, start_here

COMMAND = Command(
    words=("train", "pretrain"),
    settings="corpus: it's here\nloop:\n  parallel:\n    tensor: 2\n",
    out="runs/My Base_1",
)
CLUSTER = LaunchConfig(nproc=4, nodes=2, gpus=4, time="04:00:00", memory="64Gi", partition="gpu")
POPEN = subprocess.Popen
PODS = LaunchConfig(nproc=4, nodes=2, gpus=4, memory="64Gi", image="lm:1", volume="shared")


def test_a_slurm_script_is_a_shell_script_with_the_plan_in_it(tmp_path: Path) -> None:
    script = slurm_script(COMMAND, str(tmp_path / "a b" / "config.yaml"), CLUSTER)
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    options = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --nodes=2" in options and "#SBATCH --ntasks-per-node=4" in options
    assert "#SBATCH --requeue" in options and "#SBATCH --job-name=lmworks-my-base-1" in options
    # Directives end at the first command: none may come after.
    body = script.splitlines()[len(options) + 1 :]
    assert not any(line.startswith("#SBATCH") for line in body)


@pytest.mark.parametrize(("status", "requeued"), [(75, True), (0, False), (2, False)])
def test_a_slurm_job_is_requeued_when_it_may_go_on(
    tmp_path: Path, status: int, requeued: bool
) -> None:
    """Run with stand-ins for Slurm's commands: each task is started with its place."""
    (tmp_path / "srun").write_text(
        "#!/bin/bash\nwhile [ $# -gt 2 ]; do shift; done\n"
        'for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "bash" -c "$2" || s=$?; done\n'
        "exit ${s:-0}\n"
    )
    (tmp_path / "scontrol").write_text(
        '#!/bin/bash\nif [ "$1" = show ]; then echo first; echo second; '
        'else echo "$@" >> "$LOG"; fi\n'
    )
    (tmp_path / "python").write_text(
        '#!/bin/bash\necho "$RANK/$WORLD_SIZE $LOCAL_RANK $MASTER_ADDR $@" >> "$LOG"\n'
        f"exit {status}\n"
    )
    for name in ("srun", "scontrol", "python"):
        (tmp_path / name).chmod(0o755)
    script = slurm_script(COMMAND, "config.yaml", CLUSTER)
    log = tmp_path / "log"
    done = subprocess.run(
        ["bash"],
        input=script,
        text=True,
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "LOG": str(log),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n",
            "SLURM_NTASKS": "2",
        },
    )
    assert done.returncode == status
    lines = log.read_text().splitlines()
    assert lines[0].startswith(
        "0/2 0 first -m lmworks.cli.main train pretrain --recipe config.yaml"
    )
    assert lines[0].endswith("--out runs/My Base_1") and lines[1].startswith("1/2 1 first")
    assert ("requeue 7" in lines) == requeued


def manifest(config: LaunchConfig = PODS) -> dict[str, dict[str, Any]]:
    parts = yaml.safe_load_all(kubernetes_manifest(COMMAND, config))
    return {part["kind"]: part for part in parts}


def test_a_kubernetes_manifest_holds_a_job_that_meets_at_its_service() -> None:
    parts = manifest()
    assert list(parts) == ["ConfigMap", "Service", "Job"]
    job, service = parts["Job"]["spec"], parts["Service"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 2, 2)
    pod = job["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"] == "lmworks-my-base-1"
    assert service["spec"]["selector"].items() <= job["template"]["metadata"]["labels"].items()
    assert service["spec"]["clusterIP"] == "None"
    (container,) = pod["containers"]
    shell = container["command"][-1]
    assert "--launch-set master=lmworks-my-base-1-0.lmworks-my-base-1:29500" in shell
    assert "--nproc 4 --nodes 2" in shell and 'node_rank="$JOB_COMPLETION_INDEX"' in shell
    assert parts["ConfigMap"]["data"]["config.yaml"] == COMMAND.settings
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_a_pod_that_may_go_on_is_no_failure() -> None:
    rules = manifest()["Job"]["spec"]["podFailurePolicy"]["rules"]
    actions = {tuple(r["onExitCodes"]["values"]): r["action"] for r in rules if "onExitCodes" in r}
    assert actions == {(2,): "FailJob", (75,): "Ignore"}
    assert manifest()["Job"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_what_is_missing_is_asked_for() -> None:
    with pytest.raises(UserError, match="--launch-set volume="):
        kubernetes_manifest(COMMAND, LaunchConfig(image="lm:1"))
    with pytest.raises(UserError, match="blank or a line break"):
        slurm_script(COMMAND, "c", LaunchConfig(partition="gpu\nrm -rf"))
    with pytest.raises(UserError, match="did you mean 'slurm'"):
        launch("slrm", COMMAND, LaunchConfig())
    with pytest.raises(UserError, match="nodes = 0"):
        launch("slurm", COMMAND, LaunchConfig(nodes=0))


def test_a_job_is_written_and_handed_over_only_where_that_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = Command(words=("train", "sft"), settings="seed: 1\n", out=str(tmp_path / "chat"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    said: list[str] = []
    with progress.heard_by(said.append):
        assert launch("slurm", command, LaunchConfig(nproc=2)) == 0
    assert (tmp_path / "chat.launch" / "config.yaml").read_text() == "seed: 1\n"
    assert "sbatch is not here" in said[0] and "job.sbatch" in said[0]


def _as_lmworks(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let `start_here` run a script in place of the command line."""
    monkeypatch.setattr(
        "lmworks.training.distributed.launch.subprocess.Popen",
        lambda words, **options: POPEN([sys.executable, "-c", script], **options),
    )


def test_processes_are_started_with_their_places_and_their_statuses_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import os, pathlib, sys; r = os.environ['RANK']; "
        f"pathlib.Path({str(tmp_path)!r}, r).write_text(os.environ['WORLD_SIZE']); "
    )
    _as_lmworks(monkeypatch, script)
    assert start_here(["x"], LaunchConfig(nproc=3)) == 0
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"0": "3", "1": "3", "2": "3"}
    _as_lmworks(monkeypatch, script + "sys.exit(2 * (r == '1'))")
    assert start_here(["x"], LaunchConfig(nproc=2)) == 2
    _as_lmworks(monkeypatch, script + "os.kill(os.getpid(), 9 * (r == '0'))")
    assert start_here(["x"], LaunchConfig(nproc=2)) == 128 + 9

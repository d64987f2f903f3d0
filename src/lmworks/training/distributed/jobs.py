"""A launch as a Slurm batch script, and as a Kubernetes Job with its Service.

Both let a run that the system ends go on: status 75 says that a new start will. Slurm requeues the
job; Kubernetes makes the pod anew without counting it as a failure.

Formats: `man sbatch`; Kubernetes' batch/v1 Job with completionMode Indexed and podFailurePolicy.
"""

from __future__ import annotations

import shlex
from typing import Any

from lmworks.core.errors import Preempted, UserError
from lmworks.training.distributed.launch import Command, LaunchConfig

_PORT = 29500
_NOTICE_S = 120  # between the system's SIGTERM and the end


def slurm_script(command: Command, recipe: str, config: LaunchConfig) -> str:
    """The text of an sbatch script. Raises: UserError for a value that would break a line of it."""
    nproc = config.nproc or max(1, config.gpus)
    wanted = {
        "job-name": command.job_name,
        "nodes": str(config.nodes),
        "ntasks-per-node": str(nproc),
        "cpus-per-task": str(config.cpus),
        "gpus-per-node": str(config.gpus) if config.gpus else "",
        "mem": config.memory.removesuffix("i").removesuffix("B"),
        "time": config.time,
        "partition": config.partition,
        "account": config.account,
        "output": f"{command.folder}/%j.log",
        "open-mode": "append",
        "signal": f"TERM@{_NOTICE_S}",
    }
    for name, value in wanted.items():
        if any(c in value for c in "\n\r \t") and name != "output":
            raise UserError(f"launch: {name} {value!r} has a blank or a line break in it")
    options = [f"#SBATCH --{name}={value}" for name, value in wanted.items() if value]
    run = shlex.join([config.python, "-m", "lmworks.cli.main", *command.arguments(recipe)])
    inner = (
        "export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID "
        f"LOCAL_WORLD_SIZE={nproc}; exec {run}"
    )
    return "\n".join(
        [
            "#!/bin/bash",
            *options,
            "#SBATCH --requeue",
            "",
            "set -u",
            *([config.setup] if config.setup else []),
            'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            "MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
            "export MASTER_ADDR MASTER_PORT",
            "",
            "# Each task is one process; all end together when one of them is gone.",
            f"srun --kill-on-bad-exit=0 --wait={_NOTICE_S} bash -c {shlex.quote(inner)}",
            "status=$?",
            "# The time is over, the node was wanted, or a process was lost: go on later.",
            f'if [ "$status" -eq {Preempted.exit_code} ]; then',
            '  scontrol requeue "$SLURM_JOB_ID"',
            "fi",
            'exit "$status"',
            "",
        ]
    )


def kubernetes_manifest(command: Command, config: LaunchConfig) -> str:
    """A ConfigMap with the settings, a headless Service to meet at, and an indexed Job, as YAML.

    Raises: UserError without an image or a volume.
    """
    import yaml

    for name, why in (
        ("image", "a container image that has lmworks"),
        ("volume", "the claim of a volume that all pods share, for inputs and checkpoints"),
    ):
        if not getattr(config, name):
            raise UserError(f"Kubernetes needs {why}: --launch-set {name}=...")
    name = command.job_name
    labels = {"app": "lmworks", "lmworks/run": name}
    common = {"name": name, "namespace": config.namespace, "labels": labels}
    parts: list[dict[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": common,
            "data": {"config.yaml": command.settings},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": common,
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,  # processes meet before any is ready
                "selector": {"lmworks/run": name},
                "ports": [{"name": "meet", "port": _PORT}],
            },
        },
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": common,
            "spec": _job(command, config, labels),
        },
    ]
    return "---\n".join(yaml.safe_dump(part, sort_keys=False) for part in parts)


def _job(command: Command, config: LaunchConfig, labels: dict[str, str]) -> dict[str, Any]:
    name, nproc = command.job_name, config.nproc or max(1, config.gpus)
    resources: dict[str, Any] = {"requests": {"cpu": str(config.cpus * nproc)}, "limits": {}}
    if config.memory:
        resources["requests"]["memory"] = resources["limits"]["memory"] = config.memory
    if config.gpus:
        resources["limits"]["nvidia.com/gpu"] = config.gpus
    start = [config.python, "-m", "lmworks.cli.main"]
    start += command.arguments("/etc/lmworks/config.yaml")
    start += ["--launch", "torchrun", "--nproc", str(nproc), "--nodes", str(config.nodes)]
    start += ["--launch-set", f"master={name}-0.{name}:{_PORT}"]
    inner = shlex.join(start) + ' --launch-set node_rank="$JOB_COMPLETION_INDEX"'
    container = {
        "name": "train",
        "image": config.image,
        # exec: the signal that ends a pod has to reach lmworks.
        "command": ["/bin/sh", "-c", f"exec {inner}"],
        "workingDir": "/work",
        "resources": {key: value for key, value in resources.items() if value},
        "volumeMounts": [
            {"name": "work", "mountPath": "/work"},
            {"name": "settings", "mountPath": "/etc/lmworks"},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }
    again = {"containerName": "train", "operator": "In", "values": [Preempted.exit_code]}
    wrong = {"containerName": "train", "operator": "In", "values": [UserError.exit_code]}
    return {
        "completionMode": "Indexed",
        "completions": config.nodes,
        "parallelism": config.nodes,
        "backoffLimit": 6,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": wrong},
                {"action": "Ignore", "onExitCodes": again},
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
            ]
        },
        "template": {
            "metadata": {"labels": labels},
            "spec": {
                "subdomain": name,
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": _NOTICE_S,
                "containers": [container],
                "volumes": [
                    {"name": "work", "persistentVolumeClaim": {"claimName": config.volume}},
                    {"name": "settings", "configMap": {"name": name}},
                    {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
                ],
            },
        },
    }

"""`lmworks deploy FOLDER MODEL...`: files for Docker, Compose and Kubernetes."""

from __future__ import annotations

from typing import Any

import click


@click.command()
@click.argument("folder", metavar="FOLDER")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--docker", "docker", is_flag=True, help="A Dockerfile, and what it needs.")
@click.option("--compose", "compose", is_flag=True, help="Server, gateway and Redis together.")
@click.option("--k8s", "k8s", is_flag=True, help="Kubernetes manifests, scaled on queue depth.")
@click.option("--name", default="lmworks", show_default=True, help="What objects are called.")
@click.option("--image", default="lmworks:latest", show_default=True, help="The image's name.")
@click.option("--replicas", default=1, show_default=True, help="Servers at least.")
@click.option("--max-replicas", default=8, show_default=True, help="Servers at most.")
@click.option("--memory", default="4GB", show_default=True, metavar="SIZE", help="Of one server.")
@click.option("--cpus", default=2.0, show_default=True, help="Of one server.")
@click.option("--drain", "drain_s", default=30, show_default=True, metavar="S", help="For answers.")
def command(
    folder: str,
    models: tuple[str, ...],
    docker: bool,
    compose: bool,
    k8s: bool,
    **settings: Any,
) -> None:
    """Write what a container platform needs to run MODEL behind a gateway; all kinds if none is
    named. A model that is a file or folder here goes into the image.

    \b
    Examples:
      lmworks deploy out smollm2-135m
      lmworks deploy out chat=lmworks-quickstart/chat-q8 --docker --compose
      lmworks deploy out smollm2-135m --k8s --image registry.example/lm:1 --max-replicas 20
    """
    from lmworks.ops.deployment import KINDS, DeployConfig, write_deployment

    wanted = [kind for kind, on in zip(KINDS, (docker, compose, k8s), strict=True) if on]
    config = DeployConfig(**settings)
    for path in write_deployment(folder, models, wanted or KINDS, config):
        click.echo(path)

"""What a container platform needs to run a model behind a gateway: files, out of templates.

| kind | files |
|---|---|
| docker | `Dockerfile`, `.dockerignore`, and what the image is built from |
| compose | `compose.yaml`, `gateway.yaml`: server, gateway, Redis |
| k8s | `k8s/`: the same, with probes, draining, a disruption budget, scaling on queue depth |

A model that is a file or folder here is copied beside the Dockerfile and into the image; any other
reference is fetched when the container starts first.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lmworks
from lmworks.core.config import option
from lmworks.core.errors import UserError, unknown_name
from lmworks.core.files import write_text, writing
from lmworks.core.quantities import parse_bytes

KINDS = ("docker", "compose", "k8s")
_TEMPLATES = Path(__file__).with_name("deployment_files")
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?")
_IMAGE = re.compile(r"[a-z0-9]([a-z0-9._:/-]{0,198}[A-Za-z0-9._-])?")
_FILES: dict[str, tuple[tuple[str, str], ...]] = {
    "docker": (("Dockerfile", "Dockerfile"), (".dockerignore", "dockerignore")),
    "compose": (("compose.yaml", "compose.yaml"), ("gateway.yaml", "gateway.yaml")),
    "k8s": tuple(
        (f"k8s/{name}", name)
        for name in (
            "kustomization.yaml",
            "server.yaml",
            "gateway-set.yaml",
            "gateway.yaml",
            "redis.yaml",
            "hpa.yaml",
            "adapter-values.yaml",
            "keda.yaml",
        )
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployConfig:
    """What is the same for all kinds."""

    name: str = option("lmworks", help="what services and objects are called")
    image: str = option("lmworks:latest", help="the image's name, with its registry and tag")
    replicas: int = option(1, help="servers at least")
    max_replicas: int = option(8, help="servers at most, where they are scaled")
    memory: str = option("4GB", help="of one server")
    cpus: float = option(2.0, help="of one server")
    drain_s: int = option(30, help="seconds that running answers get when a container is ended")


def write_deployment(
    folder: str | Path,
    models: Sequence[str],
    kinds: Sequence[str] = KINDS,
    config: DeployConfig | None = None,
    *,
    source: bool = True,
) -> list[Path]:
    """Write the files of `kinds` into a folder.

    Args:
        models: references, or NAME=REFERENCE.
        source: copy lmworks' own source beside the Dockerfile when this is a checkout; without,
            the folder is `deploy` of a checkout and the image is built from there.
    Returns: the files that were written; copies of models and source are not among them.
    Raises: UserError for a name that a platform would refuse, or a file that is there and differs.
    """
    folder, config = Path(folder), config or DeployConfig()
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind of deployment", kind, KINDS)
    _check(config)
    named = _named(models)
    local = {n: Path(r) for n, r in named.items() if Path(r).expanduser().exists()}
    values = _values(config, named, local)
    checkout = _checkout() if source else None
    values["source"] = "source/" if checkout else ""
    values["requirement"] = ""
    values["build"] = "." if source else {"context": "..", "dockerfile": "deploy/Dockerfile"}
    if source and checkout is None:
        values["requirement"] = f"lmworks[gateway,structured]=={lmworks.__version__}"
    files = [pair for kind in kinds for pair in _FILES[kind]]
    texts = {path: _render(name, values, path) for path, name in files}
    for path, text in texts.items():
        there = folder / path
        if there.exists() and there.read_text(encoding="utf-8") != text:
            raise UserError(f"{there} is there already and differs: name another folder")
    for path, text in texts.items():
        write_text(folder / path, text)
    if "docker" in kinds or "compose" in kinds:
        for name, model in local.items():
            _copy(model.expanduser(), folder / "models" / name)
        if checkout:
            for part in ("pyproject.toml", "README.md", "LICENSE", "src"):
                _copy(checkout / part, folder / "source" / part)
    return [folder / path for path in texts]


def _check(config: DeployConfig) -> None:
    if not _NAME.fullmatch(config.name):
        raise UserError(
            f"name {config.name[:40]!r}: lower case letters, digits and dashes, up to 32"
        )
    if not _IMAGE.fullmatch(config.image):
        raise UserError(f"image {config.image[:80]!r} is not the name of an image")
    if not 1 <= config.replicas <= config.max_replicas:
        raise UserError(f"replicas {config.replicas}: from 1 to max_replicas {config.max_replicas}")
    if not config.cpus > 0 or config.drain_s < 0:
        raise UserError("cpus must be above 0, and drain_s not below")


def _named(models: Sequence[str]) -> dict[str, str]:
    if not models:
        raise UserError("no model: name one, such as smollm2-135m")
    named: dict[str, str] = {}
    for text in models:
        name, equals, reference = text.partition("=")
        if not equals or "/" in name or ":" in name:
            reference, path = text, Path(re.sub(r"^(hf|pypi):", "", text))
            name = path.stem if path.suffix == ".gguf" else path.name
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", name.partition("#")[0])
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
            raise UserError(f"{text[:80]!r}: give it a plain name, as NAME={reference[:60]}")
        if name in named:
            raise UserError(f"two models are called {name!r}: give one as other-name={reference}")
        if any(ord(c) < 32 for c in reference):
            raise UserError(f"{text[:80]!r} is no reference")
        named[name] = reference
    return named


def _values(
    config: DeployConfig, named: Mapping[str, str], local: Mapping[str, Path]
) -> dict[str, Any]:
    num_bytes = parse_bytes(config.memory, "memory")
    served = [
        f"{name}=/models/{name}" + (f"/{path.name}" if path.is_file() else "")
        if (path := local.get(name))
        else f"{name}={reference}"
        for name, reference in named.items()
    ]
    serve = ["serve", *served, "--host", "0.0.0.0", "--port", "8000"]
    return {
        **dataclasses.asdict(config),
        "cpus": f"{config.cpus:g}",
        "memory": f"{num_bytes // 2**20}M",
        "memory_kubernetes": f"{num_bytes // 2**20}Mi",
        "models": list(named),
        "baked": list(local),
        "serve": [*serve, "--drain", str(config.drain_s), "--log-json"],
    }


def _render(name: str, values: Mapping[str, Any], path: str) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["tojson"] = _json
    server = f"{values['name']}-server" if path.startswith("k8s/") else "server"
    return environment.get_template(f"{name}.jinja").render(**values, server=server)


def _json(value: Any) -> str:
    """JSON, which is YAML and Dockerfile's exec form too."""
    import json

    return json.dumps(value, ensure_ascii=False)


def _checkout() -> Path | None:
    """The checkout that this package runs from, if it does."""
    root = Path(lmworks.__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() and (root / "src").is_dir() else None


def _copy(path: Path, to: Path) -> None:
    """A copy of a file or folder; a model file goes into a folder of its name."""
    with writing(to):
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")
            shutil.copytree(path, to, dirs_exist_ok=True, ignore=ignored)
        else:
            target = to / path.name if to.parent.name == "models" else to
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)

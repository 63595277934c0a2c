"""Runs the Deployment of the Helm chart by podman: make test-containers CONTAINER=podman.

Docker has no command for manifests; without podman the tests are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.heavy.container_engine import IMAGE, ContainerEngine, wait_until
from tests.heavy.containers import EXPECTED, Served
from tests.heavy.findings import RESULTS, Findings
from tests.ops.rendered_chart import rendered
from tests.support.ports import free_port

PREFIX = "r-lite-detr-pod"  # podman adds a number, depending on its version

pytestmark = pytest.mark.timeout(3600)


class Played(Served):
    """The pod of the rendered Deployment, on free ports of the host."""

    def __init__(self, engine: ContainerEngine, folder: Path) -> None:
        self.engine = engine
        http, grpc = free_port(), free_port()
        self.url = f"http://127.0.0.1:{http}"
        deployment = rendered({"drain": {"delaySeconds": 1}})["Deployment"]
        pod = deployment["spec"]["template"]["spec"]
        pod["hostNetwork"] = True
        [container] = pod["containers"]
        container["image"] = f"localhost/{IMAGE}"
        ports: dict[str, Any] = {"HOST": "127.0.0.1", "HTTP_PORT": http, "GRPC_PORT": grpc}
        for variable in container["env"]:
            setting = variable["name"].removeprefix("LITE_DETR_")
            variable["value"] = str(ports.get(setting, variable["value"]))
        # The network of the host has no port mappings; podman runs probes by curl in the container.
        for key in ("ports", "startupProbe", "livenessProbe", "readinessProbe"):
            del container[key]
        self.file = folder / "deployment.yaml"
        self.file.write_text(yaml.safe_dump(deployment), encoding="utf-8")

    @property
    def pods(self) -> list[str]:
        """Names of the pods that run or have stopped."""
        arguments = ("pod", "ps", "--format={{.Name}}", f"--filter=name={PREFIX}")
        return self.engine.do(*arguments).split()

    @property
    def container(self) -> str:
        [pod] = self.pods
        return f"{pod}-lite-detr"

    def remove(self) -> None:
        for pod in self.pods:
            self.engine.do("pod", "rm", "--force", pod)


@pytest.fixture(scope="module")
def findings() -> Iterator[Findings]:
    found = Findings("The Deployment of the Helm chart", "make test-containers CONTAINER=podman")
    yield found
    found.write(RESULTS / "kubernetes")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    engine = ContainerEngine()
    if "podman" not in engine.do("--version"):
        pytest.skip("only podman runs manifests of Kubernetes")
    built = engine.build("cpu", IMAGE)
    assert built.returncode == 0, built.stdout + built.stderr
    pod = Played(engine, tmp_path_factory.mktemp("played"))
    pod.remove()
    engine.do("play", "kube", "--network=host", str(pod.file))
    try:
        wait_until(pod.is_ready, "ready")
        yield pod
    finally:
        pod.remove()


def test_the_pod_detects_codes(played: Played) -> None:
    found = played.detect().json()["detections"]
    assert {detection["label"] for detection in found} == EXPECTED


def test_the_pod_is_hardened(played: Played) -> None:
    described = played.engine.inspect(played.container)
    assert described["HostConfig"]["ReadonlyRootfs"]
    assert described["Config"]["User"] == "10001:10001"
    assert not described["EffectiveCaps"]
    script = (
        "touch /opt/x || echo refused; touch /tmp/x && touch ~/.cache/lite-detr/x && echo wrote"
    )
    output = played.engine.do("exec", played.container, "sh", "-c", script, check=False)
    assert "refused" in output
    assert "wrote" in output


def test_the_pod_drains_under_load(played: Played, findings: Findings) -> None:
    codes, seconds = played.stop_under_load(
        lambda: played.engine.do("pod", "stop", "--time=75", *played.pods)
    )
    assert set(codes) <= {200, 0}, codes  # completed, or never accepted
    assert played.engine.inspect(played.container)["State"]["ExitCode"] == 0
    assert "all accepted requests were completed" in played.engine.do("logs", played.container)
    findings.note("completed, of 24 requests in flight when the pod was stopped", codes.count(200))
    findings.note("seconds that the stop took", round(seconds, 1))

"""Builds and runs the images: make test-containers [CONTAINER=podman] [TORCH_INDEX=...]."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from lite_detr_client import GrpcClient
from tests.heavy.container_engine import IMAGE, ContainerEngine, wait_until
from tests.heavy.findings import RESULTS, Findings
from tests.support.ports import free_port
from tests.support.repository import ROOT

CLIENTS = 24
SAMPLE = ROOT / "docs" / "samples" / "codes.jpg"
EXPECTED = {
    code["label"]
    for code in json.loads((ROOT / "docs" / "samples" / "codes.json").read_text())["codes"]
}
NAME = "lite-detr-check"
HARDENING = (
    "--read-only",
    "--tmpfs=/tmp:size=256m,mode=1777",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--memory=1g",
    "--pids-limit=256",
)

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def engine() -> ContainerEngine:
    return ContainerEngine()


@pytest.fixture(scope="module")
def findings() -> Iterator[Findings]:
    found = Findings("Containers", "make test-containers")
    yield found
    found.write(RESULTS / "containers")


@pytest.fixture(scope="module", autouse=True)
def image(engine: ContainerEngine, findings: Findings) -> None:
    """Builds the CPU image once."""
    built = engine.build("cpu", IMAGE)
    assert built.returncode == 0, built.stdout + built.stderr
    findings.note("engine", engine.do("--version").strip())
    findings.note("CPU image, MB", round(engine.inspect(IMAGE)["Size"] / 1e6))


class Served:
    """A running service.

    Attributes:
        url: of its HTTP port.
    """

    url: str

    def is_ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz").status_code == httpx.codes.OK
        return False

    def detect(self) -> httpx.Response:
        return httpx.post(f"{self.url}/detect", content=SAMPLE.read_bytes(), timeout=120)

    def stop_under_load(self, stop: Callable[[], object]) -> tuple[list[int], float]:
        """Stops the service while requests are in flight.

        Returns:
            The statuses of the responses, 0 where the connection was refused, and the seconds that
            the stop took.
        """
        with ThreadPoolExecutor(CLIENTS) as clients:
            responses = [clients.submit(self.detect) for _ in range(CLIENTS)]
            wait_until(lambda: any(response.done() for response in responses), "a first response")
            started = time.monotonic()
            stop()
            seconds = time.monotonic() - started
            codes = [
                0 if isinstance(each.exception(), httpx.ConnectError) else each.result().status_code
                for each in responses
            ]
        return codes, seconds


class Running(Served):
    """A running container of the service."""

    def __init__(self, engine: ContainerEngine, *flags: str) -> None:
        self.engine = engine
        self.http_port, self.grpc_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        ports = {"HOST": "127.0.0.1", "HTTP_PORT": self.http_port, "GRPC_PORT": self.grpc_port}
        settings = [f"--env=LITE_DETR_{name}={value}" for name, value in ports.items()]
        self.started = time.monotonic()
        engine.do("run", "--detach", f"--name={NAME}", "--network=host", *flags, *settings, IMAGE)

    @property
    def logs(self) -> str:
        return self.engine.do("logs", NAME)


@pytest.fixture
def running(engine: ContainerEngine) -> Iterator[Running]:
    """A ready service in a hardened container."""
    engine.do("rm", "--force", NAME, check=False)
    container = Running(engine, *HARDENING)
    try:
        wait_until(container.is_ready, f"ready: {container.logs}")
        yield container
    finally:
        engine.do("rm", "--force", NAME, check=False)


def health_check(engine: ContainerEngine) -> list[str]:
    """The image's health check command; podman and Docker store it in different places."""
    described = engine.inspect(IMAGE)
    check = described.get("Healthcheck") or described["Config"]["Healthcheck"]
    kind, *argv = map(str, check["Test"])
    assert kind == "CMD"
    return argv


def test_image_has_user_stop_signal_and_health_check(engine: ContainerEngine) -> None:
    configuration = engine.inspect(IMAGE)["Config"]
    assert configuration["User"] == "10001:10001"
    assert configuration["StopSignal"] in ("SIGTERM", "15")
    assert health_check(engine)[-1].endswith("health_check.py")
    assert set(configuration["ExposedPorts"]) == {"8000/tcp", "8001/tcp"}


@pytest.mark.parametrize("tool", ["g++", "cc", "/opt/lite-detr/bin/pip"])
def test_image_has_no_build_tools(engine: ContainerEngine, tool: str) -> None:
    assert engine.shell(f"command -v {tool}").returncode != 0


def test_image_has_kernels_for_every_level(engine: ContainerEngine) -> None:
    listed = engine.shell(
        'python3 -c "from model.native.prebuilt import *; '
        'print(len(levels()) * len(ALL), len(list(DIRECTORY.iterdir())), load_prebuilt(ALL[0]))"'
    )
    count, files, loaded = listed.stdout.split(maxsplit=2)
    assert int(count) == int(files) > 0
    assert "deform_attn-" in loaded


def test_http_and_grpc_detect_the_same_codes(running: Running, findings: Findings) -> None:
    findings.note("seconds from `run` to ready", round(time.monotonic() - running.started, 1))
    over_http = running.detect().json()["detections"]
    with GrpcClient(f"127.0.0.1:{running.grpc_port}") as client:
        over_grpc = client.detect(SAMPLE).detections
    assert {found["label"] for found in over_http} == EXPECTED
    assert [found["label"] for found in over_http] == [found.label for found in over_grpc]
    findings.note("ran with", " ".join(HARDENING))


def test_kernels_of_the_image_are_used_and_no_file_is_written(running: Running) -> None:
    assert '"kernel":"cpu"' in running.logs
    assert running.detect().status_code == httpx.codes.OK
    changed = running.engine.do("diff", NAME).splitlines()
    assert not [line for line in changed if "/opt" in line or "/home" in line]


def test_root_file_system_is_read_only(running: Running) -> None:
    done = running.engine.do(
        "exec", NAME, "sh", "-c", "touch /opt/lite-detr/x || echo refused", check=False
    )
    assert "refused" in done


def test_health_check_of_the_image_succeeds(running: Running) -> None:
    running.engine.do("exec", NAME, *health_check(running.engine))


def test_memory_stays_below_its_limit(running: Running, findings: Findings) -> None:
    with ThreadPoolExecutor(8) as clients:
        responses = list(clients.map(lambda _: running.detect(), range(40)))
    assert {response.status_code for response in responses} == {200}
    script = "cat /sys/fs/cgroup/memory.current /sys/fs/cgroup/memory/memory.usage_in_bytes"
    used = int(
        running.engine.do("exec", NAME, "sh", "-c", f"{script} 2>/dev/null; true").split()[0]
    )
    findings.note("memory after 40 images, 8 in flight, MiB (limit 1024)", round(used / 2**20))
    assert used < 0.9 * 2**30


def test_stop_finishes_all_accepted_requests(running: Running, findings: Findings) -> None:
    codes, seconds = running.stop_under_load(lambda: running.engine.do("stop", "--time=75", NAME))
    findings.note("seconds that a stop under load took", round(seconds, 1))
    assert set(codes) <= {200, 0}, codes  # completed, or never accepted
    findings.note("completed, of 24 requests in flight when it was stopped", codes.count(200))
    assert "all accepted requests were completed" in running.logs
    assert running.engine.inspect(NAME)["State"]["ExitCode"] == 0


def test_cuda_image_requires_a_cuda_torch(engine: ContainerEngine, findings: Findings) -> None:
    """Every step of the CUDA image runs; the last one checks the build of torch."""
    built = engine.build("cuda", "lite-detr:cuda")
    output = built.stdout + built.stderr
    if built.returncode == 0:
        findings.note("CUDA image", "built")
        assert engine.inspect("lite-detr:cuda")["Config"]["User"] == "10001:10001"
    else:
        findings.note("CUDA image", "every step but the last ran; the index offered a CPU torch")
        assert "this torch has no CUDA" in output

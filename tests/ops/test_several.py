"""Several instances on one machine: the files of docker/several."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from lite_detr_client import GrpcClient
from service.settings import Settings
from tests.ops.queries import load_yaml
from tests.ops.real_prometheus import program
from tests.ops.test_proxies import example, states_after_checks, with_statistics
from tests.support.images import solid_png
from tests.support.ports import free_port
from tests.support.repository import ROOT
from tests.support.running import DEFAULTS, Service

FOLDER = ROOT / "docker" / "several"
UNIT = (FOLDER / "lite-detr@.service").read_text(encoding="utf-8")
COMPOSE = load_yaml("docker/several/compose.yml")
IMAGE = solid_png((100, 100, 103))
BACKENDS = ("lite-detr-http", "lite-detr-grpc")


def proxy_configuration(ports: dict[str, str], port: int) -> str:
    """The proxy's file with other addresses; each must occur in it."""
    text = (FOLDER / "haproxy.cfg").read_text(encoding="utf-8")
    for old, new in (ports | {"bind :8000": f"bind 127.0.0.1:{port}"}).items():
        assert re.search(rf"{old}\b", text), old
        text = re.sub(rf"{old}\b", new, text)
    return text


def checked_proxy(folder: Path, text: str) -> list[str]:
    """Writes the file, which haproxy must accept; returns the command that runs it."""
    tool = program("haproxy", "haproxy")
    (folder / "haproxy.cfg").write_text(text)
    arguments = [tool, "-db", "-f", str(folder / "haproxy.cfg")]
    done = subprocess.run([*arguments, "-c"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[WARNING]" not in done.stderr + done.stdout
    return arguments


def test_haproxy_accepts_its_file(tmp_path: Path) -> None:
    ports = {
        f"{name}:{port}": f"127.0.0.1:{port}"
        for name in COMPOSE["services"]
        if name != "proxy"
        for port in (8000, 8001)
    }
    checked_proxy(tmp_path, proxy_configuration(ports, 8000))


def test_systemd_accepts_the_units_and_the_pinning(tmp_path: Path) -> None:
    tool = program("systemd-analyze", "systemd")
    installed = Path(sys.executable).with_name("lite-detr")
    assert "/opt/lite-detr/bin/lite-detr serve" in UNIT
    unit = tmp_path / "lite-detr@0.service"
    text = UNIT.replace("/opt/lite-detr/bin/lite-detr", str(installed))
    unit.write_text(text.replace("# Environment=", "Environment="))
    (tmp_path / "lite-detr@0.service.d").mkdir()
    drop_in = tmp_path / "lite-detr@0.service.d" / "cpus.conf"
    pinned = (FOLDER / "cpus.conf").read_text(encoding="utf-8")
    for settings, accepted in ((pinned, True), (pinned.replace("NUMAMask", "NUMA"), False)):
        drop_in.write_text(settings)
        arguments = [tool, "verify", str(unit)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        complaints = [line for line in done.stderr.splitlines() if "lite-detr" in line]
        assert (complaints == []) == accepted, complaints


def test_the_unit_differs_from_that_of_one_instance_only_where_it_must() -> None:
    def lines(text: str) -> set[str]:
        return {line for line in text.splitlines() if line and not line.startswith("#")}

    added, removed = lines(UNIT) - lines(example("ini")), lines(example("ini")) - lines(UNIT)
    assert all("%i" in line or "DRAIN_DELAY" in line for line in added)
    assert len(removed) == 4  # description, cache folder and its variable, drain delay
    names = re.findall(r"LITE_DETR_(\w+)=", UNIT)
    assert {name.lower() for name in names} <= Settings.model_fields.keys()


def test_the_instances_of_the_compose_file_have_cpus_of_their_own() -> None:
    detectors = {n: s for n, s in COMPOSE["services"].items() if n != "proxy"}
    ranges = [tuple(map(int, each["cpuset"].split("-"))) for each in detectors.values()]
    assert len(ranges) == 2
    assert not set(range(ranges[0][0], ranges[0][1] + 1)) & set(range(*ranges[1]))
    single = load_yaml("docker-compose.yml")["services"]["detector"]
    for each in detectors.values():
        for key in ("read_only", "cap_drop", "security_opt", "tmpfs", "stop_grace_period"):
            assert each[key] == single[key]
        names = {n.removeprefix("LITE_DETR_").lower() for n in each["environment"]}
        assert names <= Settings.model_fields.keys()
        assert (
            float(each["environment"]["LITE_DETR_DRAIN_DELAY_SECONDS"]) > 1
        )  # the check's interval
    assert COMPOSE["services"]["proxy"]["depends_on"] == list(detectors)


@pytest.fixture
def two() -> Iterator[list[Service]]:
    """Two services, each with one CPU."""
    allowed = os.sched_getaffinity(0)
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITE_DETR_GRPC_PORT", "0")
        started = []
        try:
            for cpu in (min(allowed), max(allowed)):
                os.sched_setaffinity(0, {cpu})  # child processes inherit it, as with taskset
                settings = {"log_requests": "true", "drain_delay_seconds": "3"}
                started.append(Service(**(DEFAULTS | settings)))
                stack.callback(started[-1].kill)
        finally:
            os.sched_setaffinity(0, allowed)
        for each in started:
            each.wait_until_ready()
        yield started


def cpus_of_children(pid: int) -> set[frozenset[int]]:
    """The CPUs of a process and of all its descendants."""
    found = {frozenset(os.sched_getaffinity(pid))}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found |= cpus_of_children(int(child))
    return found


@pytest.mark.slow
def test_no_request_fails_while_one_of_two_pinned_instances_drains(
    two: list[Service], tmp_path: Path
) -> None:
    ports: dict[str, str] = {}
    for name, each in zip(("one", "two"), two, strict=True):
        assert {len(cpus) for cpus in cpus_of_children(each.process.pid)} == {1}
        http = each.url.rpartition(":")[2]
        ports |= {f"{name}:8000": f"127.0.0.1:{http}", f"{name}:8001": each.grpc_address}
    port = free_port()
    text = proxy_configuration(ports, port)
    statistics = free_port()
    text += with_statistics(statistics)
    proxy = subprocess.Popen(checked_proxy(tmp_path, text), stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_served(url)
        states = states_after_checks(statistics)
        assert set(states) == {(b, s) for b in BACKENDS for s in ("one", "two")}
        assert set(states.values()) == {"UP"}
        with (
            ThreadPoolExecutor(8) as clients,
            httpx.Client(timeout=60) as client,
            GrpcClient(f"127.0.0.1:{port}") as over_grpc,
        ):

            def detect(_: int) -> int:
                return client.post(f"{url}/detect", content=IMAGE).status_code

            def detect_over_grpc(_: int) -> int:
                return len(over_grpc.detect(IMAGE, threshold=0.0).detections)

            counts = list(clients.map(detect_over_grpc, range(10)))
            codes = list(clients.map(detect, range(40)))
            for each in two:
                requests = [line for line in each.lines if "service.access" in line]
                assert {'"http"', '"grpc"'} <= set(
                    re.findall(r'"transport":("\w+")', "".join(requests))
                )
            two[0].process.terminate()
            while two[0].process.poll() is None:
                codes += clients.map(detect, range(16))
                counts += clients.map(detect_over_grpc, range(4))
            codes += clients.map(detect, range(16))
            counts += clients.map(detect_over_grpc, range(4))
            drained = states_after_checks(statistics)
            assert {drained[each, "one"] for each in BACKENDS} == {"DOWN"}
            assert {drained[each, "two"] for each in BACKENDS} == {"UP"}
        assert (set(codes), set(counts)) == ({200}, {4})
        assert two[0].process.returncode == 0
        assert httpx.get(f"{url}/metrics").status_code == 404
    finally:
        proxy.terminate()
        proxy.wait(60)


def _wait_until_served(url: str) -> None:
    for _ in range(600):
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the proxy does not respond")

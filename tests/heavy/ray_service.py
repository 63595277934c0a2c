"""`lite-detr ray` with the fake device, and nodes of a cluster in networks of their own."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx

from service.rpc.pb import detection_pb2 as pb
from tests.support.images import solid_png
from tests.support.ports import free_port
from tests.support.repository import ROOT

READY_SECONDS = 240
DETECT = "/litedetr.v1.DetectionService/Detect"
IMAGES = [solid_png((red, 40, 250 - red), 64 + red, 48) for red in range(0, 250, 10)]
HEAD = "10.77.0.1"
HEAD_PORT = 6399
_NODE = "--net --pid --mount --fork --kill-child --mount-proc"  # what a node has of its own
# Of each line that a replica logs, on stderr of the command.
_REPLICA_LINE = re.compile(r"\(ServeReplica\S* pid=(\d+)(?:, ip=[\d.]+)?\).*service\.access")


class RayService:
    """The command, with settings of the service and options of Ray."""

    def __init__(self, log: Path, **variables: str) -> None:
        self.port, self.grpc_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        given = {
            "http_port": str(self.port),
            "grpc_port": str(self.grpc_port),
            "log_format": "json",
            "max_body_bytes": "200000",
            "fake_per_image_ms": "5",
            "ray_replica_cpus": "0.5",
            "ray_health_check_seconds": "1",
        }
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fake_ray"],
                cwd=ROOT,
                env=environment(**(given | variables)),
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while "Ready after" not in self.log:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.2)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def responding(self) -> set[int]:
        """The process ids, each on its node, of replicas that logged a request."""
        return {int(pid) for pid in _REPLICA_LINE.findall(self.log)}

    def replicas(self) -> list[int]:
        """The process ids of the replicas."""
        return sorted(pid for pid, title in processes() if "ServeReplica" in title)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(120)
        finally:
            self.process.kill()


class Head:
    """The first node of a cluster, which has no replicas, in the network of the tests."""

    def __init__(self, log: Path, **variables: str) -> None:
        _do(f"ip address add {HEAD}/32 dev lo")
        self.folder = tempfile.mkdtemp(prefix="ray-")  # short: of sockets
        options = f"--head --port={HEAD_PORT} --include-dashboard=false --disable-usage-stats"
        command = [*_ray(options, HEAD, 0), f"--temp-dir={self.folder}"]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment(**variables), stdout=out, stderr=out
            )

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        _do(f"ip address del {HEAD}/32 dev lo")


class Node:
    """A further node with one CPU: its own network, processes and folder for temporary files."""

    def __init__(self, number: int, head: Head, log: Path, **variables: str) -> None:
        self._link = f"node{number}"
        here, there = f"10.77.{number}.1", f"10.77.{number}.2"
        ray = shlex.join(_ray(f"--address={HEAD}:{HEAD_PORT}", there, 1))
        script = f"mount -t tmpfs node {head.folder} && read ready && exec {ray}"
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                ["unshare", *_NODE.split(), "sh", "-c", script],
                cwd=ROOT,
                env=environment(**variables),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
            )
        self.network = self._wait_for_network()
        inside = f"nsenter --target {self.process.pid} --net ip"
        for command in (
            f"ip link add {self._link} type veth peer name uplink netns {self.process.pid}",
            f"ip address add {here}/24 dev {self._link}",
            f"ip link set {self._link} up",
            f"{inside} link set lo up",
            f"{inside} address add {there}/24 dev uplink",
            f"{inside} link set uplink up",
            f"{inside} route add default via {here}",
        ):
            _do(command)
        assert self.process.stdin is not None
        self.process.stdin.write(b"ready\n")
        self.process.stdin.close()

    def _wait_for_network(self) -> str:
        """The new network, once the process is in it."""
        deadline = time.monotonic() + 30
        while (network := network_of(self.process.pid)) == network_of(os.getpid()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return network

    def kill(self) -> None:
        """Ends all processes of the node at once."""
        self.process.kill()
        self.process.wait(60)


def environment(**variables: str) -> dict[str, str]:
    """The environment of the tests with settings of the service."""
    given = {f"LITE_DETR_{name.upper()}": value for name, value in variables.items()}
    return os.environ | given | {"PYTHONPATH": str(ROOT)}


def network_of(pid: int) -> str:
    """The network namespace of a process; empty if the process has ended."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


def processes() -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:
                continue
            yield int(entry.name), title.decode(errors="replace")


def wait_until(holds: Callable[[], Any], what: Callable[[], object]) -> float:
    """Polls a condition; returns the seconds until it held."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < READY_SECONDS, what()
        time.sleep(0.2)
    return time.monotonic() - started


def comparable(response: httpx.Response) -> tuple[int, Any]:
    """The status and document of a response, without times and ids, which differ by nature."""
    document = response.json()
    for name in ("timings_ms", "request_id"):
        document.pop(name, None)
    return response.status_code, document


def message_without_times(data: bytes) -> bytes:
    message = pb.DetectResponse.FromString(data)
    message.ClearField("timings_ms")
    message.ClearField("request_id")
    return bytes(message.SerializeToString())


def call(address: str, image: bytes) -> bytes:
    with grpc.insecure_channel(address) as channel:
        request = pb.DetectRequest(image=image).SerializeToString()
        detect: Any = channel.unary_unary(DETECT)
        return bytes(detect(request, timeout=60))


def _ray(options: str, address: str, cpus: int) -> list[str]:
    """The command of a node, which runs until it is ended."""
    start = "from ray.scripts.scripts import main; main()"
    words = f"start --block --node-ip-address={address} --num-cpus={cpus} {options}".split()
    return [sys.executable, "-c", start, *words]


def _do(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"

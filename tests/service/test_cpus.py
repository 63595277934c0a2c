from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.cpus import usable_cpus

V2 = "0::/\n"
V1 = "9:name=systemd:/docker/1\n4:cpu,cpuacct:/docker/1\n1:memory:/docker/1\n"


@pytest.fixture(autouse=True)
def _sixty_four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)), raising=False)


def _machine(folder: Path, memberships: str, **files: str) -> Path:
    """A root file system with control groups."""
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in (files | {"proc/self/cgroup": memberships}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("200000 100000\n", 2), ("150000 100000\n", 2), ("5000 100000\n", 1), ("max 100000\n", 64)],
)
def test_the_quota_of_a_container_limits_the_cpus(tmp_path: Path, quota: str, cpus: int) -> None:
    assert usable_cpus(_machine(tmp_path, V2, **{"cpu.max": quota})) == cpus


@pytest.mark.parametrize(
    ("quota", "cpus"), [("200000\n", 2), ("150000\n", 2), ("5000\n", 1), ("-1\n", 64)]
)
@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize("group", ["", "docker/1/"], ids=["own mount", "path of the host"])
def test_the_quota_of_version_1_limits_the_cpus(
    tmp_path: Path, quota: str, cpus: int, mount: str, group: str
) -> None:
    files = {
        f"{mount}/{group}cpu.cfs_quota_us": quota,
        f"{mount}/{group}cpu.cfs_period_us": "100000\n",
    }
    assert usable_cpus(_machine(tmp_path, V1, **files)) == cpus


@pytest.mark.parametrize("memberships", ["0::/system.slice/lite-detr.service\n"])
def test_the_quota_of_a_systemd_unit_or_its_slice_limits_the_cpus(
    tmp_path: Path, memberships: str
) -> None:
    unit = "system.slice/lite-detr.service/cpu.max"
    files = {unit: "400000 100000\n", "system.slice/cpu.max": "max 100000\n"}
    assert usable_cpus(_machine(tmp_path, memberships, **files)) == 4
    files["system.slice/cpu.max"] = "300000 100000\n"
    assert usable_cpus(_machine(tmp_path, memberships, **files)) == 3


@pytest.mark.parametrize("text", ["", "nonsense", "1 2 3", "100000 0\n"])
def test_unreadable_quotas_are_ignored(tmp_path: Path, text: str) -> None:
    assert usable_cpus(_machine(tmp_path, V2, **{"cpu.max": text})) == 64
    assert usable_cpus(_machine(tmp_path, "nonsense\n")) == 64


def test_the_affinity_limits_the_cpus_without_a_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3, 5, 7}, raising=False)
    assert usable_cpus(tmp_path / "absent") == 3

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.cpus import usable_cpus


def _quota(folder: Path, text: str) -> Path:
    path = folder / "cpu.max"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("200000 100000\n", 2), ("150000 100000\n", 2), ("5000 100000\n", 1), ("max 100000\n", 64)],
)
def test_the_quota_of_a_container_limits_the_cpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)), raising=False)
    assert usable_cpus(_quota(tmp_path, quota)) == cpus


def test_the_affinity_limits_the_cpus_without_a_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3, 5, 7}, raising=False)
    assert usable_cpus(tmp_path / "absent") == 3

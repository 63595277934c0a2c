"""Memory limits of version 1 and 2 control groups, in a made-up file system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.memory import memory_left_bytes, memory_limit_bytes, process_memory_bytes

MIB = 1024 * 1024
MEMINFO = "MemTotal: 9000000 kB\nMemAvailable: 8192000 kB\n"  # 8000 MiB
UNLIMITED_V1 = 9223372036854771712


def _write(root: Path, files: dict[str, object]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def _v2(folder: str, limit: object, used: int, files: int = 0) -> dict[str, object]:
    stat = f"anon 5\ninactive_file {files * MIB // 4}\nactive_file {files * MIB * 3 // 4}\n"
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": used * MIB,
        f"{folder}/memory.stat": stat,
    }


def _v1(folder: str, limit: int, used: int, files: int = 0) -> dict[str, object]:
    stat = f"inactive_file 1\ntotal_inactive_file {files * MIB}\ntotal_active_file 0\n"
    return {
        f"{folder}/memory.limit_in_bytes": limit,
        f"{folder}/memory.usage_in_bytes": used * MIB,
        f"{folder}/memory.stat": stat,
    }


V1_GROUPS = "4:memory:/docker/x\n2:cpu,cpuacct:/docker/x"


@pytest.mark.parametrize(
    ("files", "left"),
    [
        pytest.param({}, 8000, id="no groups"),
        pytest.param(
            {"proc/self/cgroup": "0::/", **_v2("sys/fs/cgroup", 600 * MIB, 410)}, 190, id="v2"
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/", **_v2("sys/fs/cgroup", 600 * MIB, 410, files=100)},
            290,
            id="v2, file pages are not used memory",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/", **_v2("sys/fs/cgroup", "max", 410)}, 8000, id="v2, max"
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/system.slice/lite-detr.service",
                **_v2("sys/fs/cgroup/system.slice/lite-detr.service", "max", 100),
                **_v2("sys/fs/cgroup/system.slice", 1000 * MIB, 900),
            },
            100,
            id="v2, limit of a parent",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1_GROUPS,
                **_v1("sys/fs/cgroup/memory", 600 * MIB, 410, files=10),
            },
            200,
            id="v1, path of the host",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1_GROUPS,
                **_v1("sys/fs/cgroup/memory/docker/x", 500 * MIB, 700),
                **_v1("sys/fs/cgroup/memory", UNLIMITED_V1, 4000),
            },
            0,
            id="v1, over its limit",
        ),
        pytest.param(
            {"proc/self/cgroup": V1_GROUPS, **_v1("sys/fs/cgroup/memory", UNLIMITED_V1, 10)},
            8000,
            id="v1, no limit",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "nonsense"}, 8000, id="broken"
        ),
    ],
)
def test_the_memory_left_is_that_of_the_smallest_limit(
    tmp_path: Path, files: dict[str, object], left: int
) -> None:
    assert memory_left_bytes(_write(tmp_path, files)) == left * MIB


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        pytest.param({}, 9_000_000 * 1024, id="no groups"),
        pytest.param(
            {"proc/self/cgroup": "0::/", **_v2("sys/fs/cgroup", 600 * MIB, 410)}, 600 * MIB, id="v2"
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/", **_v2("sys/fs/cgroup", "max", 410)},
            9_000_000 * 1024,
            id="v2, max",
        ),
        pytest.param(
            {"proc/self/cgroup": V1_GROUPS, **_v1("sys/fs/cgroup/memory", 700 * MIB, 5)},
            700 * MIB,
            id="v1",
        ),
    ],
)
def test_the_limit_is_the_least(files: dict[str, object], limit: int, tmp_path: Path) -> None:
    assert memory_limit_bytes(_write(tmp_path, files)) == limit


def test_the_limit_is_unknown_without_proc(tmp_path: Path) -> None:
    assert memory_limit_bytes(tmp_path) is None


def test_the_memory_left_is_unknown_without_proc(tmp_path: Path) -> None:
    assert memory_left_bytes(tmp_path) is None


def test_the_memory_of_a_process_is_its_peak_without_files_and_shared_memory(
    tmp_path: Path,
) -> None:
    status = "VmHWM:\t 900 kB\nRssAnon:\t 300 kB\nRssFile:\t 150 kB\nRssShmem:\t 50 kB"
    root = _write(tmp_path, {"proc/7/status": f"Name:\tengine\n{status}"})
    assert process_memory_bytes(7, root) == 700 * 1024
    assert process_memory_bytes(8, root) is None


def test_this_process_takes_memory() -> None:
    taken = process_memory_bytes(os.getpid())
    assert taken is None or 5 * MIB < taken < 100_000 * MIB

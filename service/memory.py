"""Memory: its limit, how much is left, and how much a process takes; read from Linux."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from service.cgroups import ROOT, cgroup_folders

_KIB = 1024


def memory_left_bytes(root: Path = ROOT) -> int | None:
    """Returns how much more memory this process and its children may take, in bytes.

    That is what the limits of its control groups (of a container or systemd unit) and the machine
    leave. File pages do not count as used, since the kernel frees them when memory is needed.

    Args:
        root: of the file system with /proc and /sys/fs/cgroup.

    Returns:
        The bytes, or None if they are unknown.
    """
    return _least(_left_in, "MemAvailable", root)


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """Returns how much memory this process and all beside it may take, in bytes.

    That is the least of the limits of its control groups and the machine's memory.

    Args:
        root: of the file system with /proc and /sys/fs/cgroup.

    Returns:
        The bytes, or None if they are unknown.
    """
    return _least(_limit_of, "MemTotal", root)


def process_memory_bytes(pid: int, root: Path = ROOT) -> int | None:
    """Returns the most memory that a process has taken, without files and shared memory.

    Args:
        pid: of a running process.
        root: of the file system with /proc.

    Returns:
        The bytes, or None if they are unknown.
    """
    status = _numbers(root / f"proc/{pid}/status")
    if "RssAnon" not in status:
        return None
    shared = status.get("RssFile", 0) + status.get("RssShmem", 0)
    return max(status["RssAnon"], status.get("VmHWM", 0) - shared) * _KIB


def _least(of_group: Callable[[Path], int | None], of_machine: str, root: Path) -> int | None:
    """The least of what holds for each control group and of a line of /proc/meminfo, in bytes."""
    found = [of_group(folder) for folder in cgroup_folders("memory", root)]
    machine = _numbers(root / "proc/meminfo").get(of_machine)
    found.append(None if machine is None else machine * _KIB)
    return min((each for each in found if each is not None), default=None)


def _limit_of(folder: Path) -> int | None:
    """The limit of one control group; None: no limit."""
    for name in ("memory.max", "memory.limit_in_bytes"):  # version 2; version 1
        try:
            return int((folder / name).read_text())
        except (OSError, ValueError):  # "max": no limit
            continue
    return None


def _left_in(folder: Path) -> int | None:
    """What the limit of one control group leaves; None: no limit."""
    stat = _numbers(folder / "memory.stat")
    try:
        if (folder / "memory.max").exists():  # version 2; "max": no limit
            limit = int((folder / "memory.max").read_text())
            used = int((folder / "memory.current").read_text())
            files = stat.get("inactive_file", 0) + stat.get("active_file", 0)
        else:  # version 1; no limit is a huge number
            limit = int((folder / "memory.limit_in_bytes").read_text())
            used = int((folder / "memory.usage_in_bytes").read_text())
            files = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)
    except (OSError, ValueError):
        return None
    return max(0, limit - max(0, used - files))


def _numbers(path: Path) -> Mapping[str, int]:
    """The first number of each line "NAME NUMBER" or "NAME: NUMBER kB" of a file."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError):
        return {}
    pairs = [(words[0].rstrip(":"), words[1]) for words in lines if len(words) > 1]
    return {name: int(number) for name, number in pairs if number.isdecimal()}

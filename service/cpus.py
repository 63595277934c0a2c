"""The number of CPUs that this process may use, by its affinity mask and its container's quota."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

# By default idle threads of torch's pool spin. The edge and other processes need the cores: where
# they were short, spinning took five times the CPU time of a forward pass.
PASSIVE_OMP_WAIT = {"OMP_WAIT_POLICY": "passive"}
_ROOT = Path("/")


def usable_cpus(root: Path = _ROOT) -> int:
    """Returns the number of CPUs for sizing thread pools; at least 1.

    `os.cpu_count` ignores the quota of a container or of a systemd unit (`CPUQuota=`), and threads
    beyond the quota are throttled.

    Args:
        root: of the file system with /proc/self/cgroup and /sys/fs/cgroup.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    quotas = [quota for folder in _cgroup_folders(root) if (quota := _quota(folder)) is not None]
    return max(1, min([allowed, *map(math.ceil, quotas)]))


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """The folders of this process's control groups and of their parents, which limit it too."""
    mounted = root / "sys/fs/cgroup"
    for controllers, path in _memberships(root):
        if not controllers:  # version 2; next to version 1 it is mounted below `unified`
            mounts = [mounted, mounted / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [mounted / controllers, mounted / "cpu"]
        else:
            continue
        for mount in mounts:
            # In a container the path may be that of the host; the mount is then the group itself.
            group = mount / path.lstrip("/")
            yield from (each for each in (group, *group.parents) if each.is_relative_to(mount))


def _memberships(root: Path) -> list[tuple[str, str]]:
    """The controllers and the path of each control group of this process (cgroups(7))."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    fields = [line.split(":", 2) for line in lines]
    return [(parts[1], parts[2]) for parts in fields if len(parts) == 3]  # noqa: PLR2004


def _quota(folder: Path) -> float | None:
    """The CPUs that a control group may use; None: no limit."""
    try:
        if (folder / "cpu.max").exists():  # version 2: "QUOTA PERIOD" in microseconds, or "max"
            quota, period = (folder / "cpu.max").read_text().split()
        else:  # version 1; -1: no limit
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        cpus = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return cpus if cpus > 0 else None

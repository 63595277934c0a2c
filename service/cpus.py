"""The number of CPUs that this process may use, by its affinity mask and its container's quota."""

from __future__ import annotations

import math
import os
from pathlib import Path

from service.cgroups import ROOT, cgroup_folders

# By default idle threads of torch's pool spin. The edge and other processes need the cores: where
# they were short, spinning took five times the CPU time of a forward pass.
PASSIVE_OMP_WAIT = {"OMP_WAIT_POLICY": "passive"}


def usable_cpus(root: Path = ROOT) -> int:
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
    quotas = [
        quota for folder in cgroup_folders("cpu", root) if (quota := _quota(folder)) is not None
    ]
    return max(1, min([allowed, *map(math.ceil, quotas)]))


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

"""The number of CPUs that this process may use, by its affinity mask and its container's quota."""

from __future__ import annotations

import math
import os
from pathlib import Path

# By default idle threads of torch's pool spin. The edge and other processes need the cores: where
# they were short, spinning took five times the CPU time of a forward pass.
PASSIVE_OMP_WAIT = {"OMP_WAIT_POLICY": "passive"}
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cpus(quota_file: Path = _CGROUP_QUOTA) -> int:
    """Returns the number of CPUs for sizing thread pools; at least 1.

    `os.cpu_count` ignores the quota of a container, and threads beyond the quota are throttled.

    Args:
        quota_file: cgroup v2 `cpu.max`: "QUOTA PERIOD" in microseconds, or "max PERIOD".
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2 here, or "max": no limit
        return allowed

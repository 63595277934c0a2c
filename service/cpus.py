"""How many CPUs this process may really use: its affinity mask and its container's quota."""

from __future__ import annotations

import math
import os
from pathlib import Path

# Idle threads of torch's pool would spin by default. Cores are shared, with the edge or with who
# knows what: where they were short, spinning cost five times the CPU time of a forward.
PASSIVE_OMP_WAIT = {"OMP_WAIT_POLICY": "passive"}
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cpus(quota_file: Path = _CGROUP_QUOTA) -> int:
    """The number of CPUs to size thread pools by; at least 1.

    A container limited to 2 CPUs on a host of 64 sees 64 in `os.cpu_count`; threads beyond its
    quota only get it throttled.

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

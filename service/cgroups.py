"""The control groups of this process, for the limits of a container or a systemd unit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def cgroup_folders(controller: str, root: Path = ROOT) -> Iterator[Path]:
    """Yields the folders of this process's control groups and of their parents, which limit it too.

    Args:
        controller: "cpu" or "memory"; chooses the group in version 1.
        root: of the file system with /proc/self/cgroup and /sys/fs/cgroup.
    """
    mounted = root / "sys/fs/cgroup"
    for controllers, path in _memberships(root):
        if not controllers:  # version 2; next to version 1 it is mounted below `unified`
            mounts = [mounted, mounted / "unified"]
        elif controller in controllers.split(","):
            mounts = [mounted / controllers, mounted / controller]
        else:
            continue
        for mount in dict.fromkeys(mounts):
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

"""Child processes: that they end with their parent, and before it; whether one is stopped."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import warnings
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_WORST_OOM_SCORE = 1000  # proc_pid_oom_score_adj(5)
_TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def ignore_terminal_signals() -> None:
    """Leaves the signals of the terminal and of process managers to the edge."""
    for number in _TERMINAL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def write_warnings_as_lines() -> None:
    """Prints Python warnings in one line each: lines of stderr become lines of the log."""

    def one_line(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        del line  # the source
        text = " ".join(str(message).split())
        return f"{filename}:{lineno}: {category.__name__}: {text}\n"

    warnings.formatwarning = one_line


def end_with_parent(parent: int) -> None:
    """Makes the kernel kill this process when its parent ends.

    Args:
        parent: process id of the parent; if it has ended already, this process exits.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def raise_oom_score(added: int) -> None:
    """Makes the kernel end this process rather than its parent if memory runs out.

    Otherwise it could choose either, as shared memory counts for both.

    Args:
        added: thousandths of the machine's memory.
    """
    score = Path("/proc/self/oom_score_adj")
    try:
        score.write_text(str(min(_WORST_OOM_SCORE, int(score.read_text()) + added)))
    except (OSError, ValueError):  # not Linux, or a sandbox without /proc
        return


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped (SIGSTOP); False where there is no /proc."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state == "T"


def children_of(pid: int) -> list[int]:
    """Process ids of the children of a process of one thread; empty where there is no /proc."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []

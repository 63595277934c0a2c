from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CHILD = """
import os, time
from service.ipc.child_process import end_with_parent, ignore_terminal_signals, raise_oom_score
if os.fork() == 0:
    ignore_terminal_signals()
    end_with_parent(os.getppid())
    raise_oom_score(300)
    print(os.getpid(), open("/proc/self/oom_score_adj").read().strip(), flush=True)
time.sleep(300)
"""
ORPHAN = """
import os
from service.ipc.child_process import end_with_parent
child = os.fork()
if child == 0:
    end_with_parent(os.getppid() + 1)
    os._exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _wait_for_exit(pid: int) -> None:
    deadline = time.monotonic() + 60
    while _is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_child_ends_with_its_parent_and_not_by_signals_of_the_terminal() -> None:
    before = int(Path("/proc/self/oom_score_adj").read_text())
    command = [sys.executable, "-c", CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child, score = map(int, parent.stdout.readline().split())
        assert score == min(1000, before + 300)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(child, number)
        time.sleep(0.1)
        assert _is_running(child)
        parent.kill()
        _wait_for_exit(child)


def test_a_child_of_another_parent_exits_with_status_0() -> None:
    done = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, check=True)
    assert done.stdout == b"0\n"


def test_a_warning_of_a_child_is_one_line() -> None:
    code = """
import warnings
from service.ipc.child_process import write_warnings_as_lines
write_warnings_as_lines()
warnings.warn("of several\\nlines", stacklevel=1)  # with its source
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    [line] = done.stderr.splitlines()
    assert line.endswith("UserWarning: of several lines")

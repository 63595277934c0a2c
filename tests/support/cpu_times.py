"""Measures the CPU time of every test: pytest --cpu-times."""

from __future__ import annotations

import os
import resource
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import pytest

LIMIT_SECONDS = 20.0  # of a test that is not marked `slow`, on a quiet core
_SHOWN = 25
_PROPERTY = "cpu_seconds"
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class CpuTimes:
    """A pytest plugin that reports CPU times; it never fails a run.

    CPU time is that of the test process and of its children, with those that still run (Linux
    only; elsewhere a child counts once it has ended). Unlike wall time it hardly depends on the
    machine's load. A fixture counts for the first test that uses it.
    """

    def __init__(self) -> None:
        self._last = _cpu_seconds()
        self._seconds: dict[str, float] = defaultdict(float)
        self._slow: set[str] = set()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        """Resets the counter: collection and waiting belong to no test."""
        self._last = _cpu_seconds()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Attaches the CPU time of a phase (setup, call, teardown) to its report."""
        report = yield
        now = _cpu_seconds()
        report.user_properties = [
            *report.user_properties,
            (_PROPERTY, now - self._last),
            ("slow", item.get_closest_marker("slow") is not None),
        ]
        self._last = now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Adds up the phases of a test, in the process that reports."""
        properties = dict(report.user_properties)
        self._seconds[report.nodeid] += float(str(properties[_PROPERTY]))
        if properties["slow"]:
            self._slow.add(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Prints the tests and files with the longest CPU times."""
        terminalreporter.section("CPU time")
        files: dict[str, float] = defaultdict(float)
        for name, seconds in self._seconds.items():
            files[name.partition("::")[0]] += seconds
        for table in (files, self._seconds):
            for name, seconds in sorted(table.items(), key=lambda item: -item[1])[:_SHOWN]:
                terminalreporter.write_line(f"{seconds:8.1f} s  {name}")
            terminalreporter.write_line("")
        terminalreporter.write_line(f"{sum(files.values()):8.1f} s  in total")
        for name, seconds in self._seconds.items():
            if seconds > LIMIT_SECONDS and name not in self._slow:
                terminalreporter.write_line(
                    f"{name} takes {seconds:.0f} s of CPU, more than {LIMIT_SECONDS:.0f} s: "
                    "make it smaller or mark it slow"
                )


def _cpu_seconds() -> float:
    """CPU time of this process and of all its descendants, ended or running."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    known = own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime
    return known + sum(_running_seconds(pid) for pid in _children(os.getpid()))


def _running_seconds(pid: int) -> float:
    try:
        # Fields 14 to 17 of proc_pid_stat(5); the name before them may contain spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has just ended
        return 0.0
    children = sum(_running_seconds(child) for child in _children(pid))
    return sum(int(ticks) for ticks in fields[11:15]) / _TICKS_PER_SECOND + children


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, path.read_text().split())
        except OSError:
            continue
    return found

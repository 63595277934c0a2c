"""The reasons for which a test may be skipped in CI: pytest --forbid-unexpected-skips."""

from __future__ import annotations

import re

import pytest

# Things that CI may lack. What `make setup-full` or .ci/run installs is not listed.
ALLOWED_REASONS = (
    r"no CUDA device",
    r"this processor has no \S+",
    r"oneDNN has no products of \S+ here",
    r"shared/reference is not next to this checkout",
    r"no photos next to the checkout",
    r"no JDK is installed",
    r"no environment with kserve",
    r"helm is not installed",
    r"Ray is not installed",
    r"no other versions of cuda-bindings are installed",
    r"this is no git checkout",
)
_ALLOWED = re.compile("|".join(ALLOWED_REASONS))


class UnexpectedSkips:
    """A pytest plugin that fails the run when a test is skipped for an unlisted reason."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Records a skipped test."""
        self._record(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Records a skipped file."""
        self._record(report)

    def _record(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not _ALLOWED.search(reason):
            self._found.append(f"{report.nodeid}: {reason}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Makes the run fail after unexpected skips."""
        if self._found and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Prints the unexpected skips."""
        if self._found:
            terminalreporter.section("Unexpected skips", red=True)
            for line in sorted(set(self._found)):
                terminalreporter.write_line(line)

"""Options and fixtures of the whole suite."""

from __future__ import annotations

import os

import pytest

from tests.support.cpu_times import CpuTimes
from tests.support.skips import UnexpectedSkips


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds what `make test-all` and `.ci/run` use."""
    group = parser.getgroup("lite-detr")
    group.addoption(
        "--cpu-times",
        action="store_true",
        help="report the tests that use the most CPU, and those over the limit of a fast test",
    )
    group.addoption(
        "--forbid-unexpected-skips",
        action="store_true",
        help="fail when a test is skipped for a reason not listed in tests/support/skips.py",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Registers the plugins of the options and bounds the threads of a worker."""
    if config.getoption("--cpu-times"):
        config.pluginmanager.register(CpuTimes(), "cpu-times")
    if config.getoption("--forbid-unexpected-skips"):
        config.pluginmanager.register(UnexpectedSkips(), "unexpected-skips")
    # Coverage counts what the tests' own processes execute; services that they start would become
    # half as slow again.
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
    # Where there is a GPU, tests of the CPU would use it; tests of the GPU name it.
    os.environ.setdefault("LITE_DETR_DEVICE", "cpu")
    # Before torch is imported: every worker would start a thread per core, and idle threads spin.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(autouse=True)
def no_grpc_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns gRPC off in services that tests start; its fixed port may be taken."""
    monkeypatch.setenv("LITE_DETR_GRPC_PORT", "-1")

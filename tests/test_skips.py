"""CI fails when a test is skipped for a reason that is not listed."""

from __future__ import annotations

import pytest

from tests.support.skips import UnexpectedSkips

pytest_plugins = ["pytester"]

SKIPPED_TEST = """
import pytest

def test_passes():
    pass

def test_is_skipped():
    pytest.skip({reason!r})
"""
SKIPPED_FILE = "import pytest\npytest.importorskip('no_such_package')\n"


@pytest.fixture(autouse=True)
def _configured(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")


@pytest.mark.parametrize(
    ("source", "status"),
    [
        (SKIPPED_TEST.format(reason="no CUDA device here"), pytest.ExitCode.OK),
        (SKIPPED_TEST.format(reason="make is missing"), pytest.ExitCode.TESTS_FAILED),
    ],
)
def test_a_skipped_test_needs_a_listed_reason(
    pytester: pytest.Pytester, source: str, status: pytest.ExitCode
) -> None:
    pytester.makepyfile(source)
    assert pytester.inline_run(plugins=[UnexpectedSkips()]).ret == status


def test_a_skipped_file_is_reported(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_one=SKIPPED_FILE, test_two="def test_passes():\n    pass\n")
    assert pytester.inline_run(plugins=[UnexpectedSkips()]).ret == pytest.ExitCode.TESTS_FAILED

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from service.observability.logs import LIFECYCLE, configure_logs


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_a_line_is_json_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    structlog.get_logger("service.test").info("engine ready", pid=7)
    (line,) = _lines(capsys)
    assert (line["event"], line["pid"], line["level"]) == ("engine ready", 7, "info")
    assert line["logger"] == "service.test"
    assert line["timestamp"].endswith("Z")


def test_lines_of_libraries_have_the_same_format(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    logging.getLogger("some.library").warning("odd: %s", 3, extra={"request_id": "abc"})
    logging.getLogger("uvicorn.error").warning("protocol trouble")
    library, server = _lines(capsys)
    assert (library["event"], library["request_id"]) == ("odd: 3", "abc")
    assert server["logger"] == "uvicorn.error"


def test_a_bound_request_id_is_on_every_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logs("info", "json")
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        structlog.get_logger("a").info("service")
        logging.getLogger("b").warning("library")
    assert [line["request_id"] for line in _lines(capsys)] == ["r-1", "r-1"]


def test_an_exception_is_logged_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    try:
        raise ValueError("deep trouble")
    except ValueError:
        structlog.get_logger("a").exception("failed")
        logging.getLogger("b").exception("failed too")
    for line in _lines(capsys):
        assert "ValueError: deep trouble" in line["exception"]


def test_lines_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("warning", "json")
    structlog.get_logger("a").info("quiet")
    logging.getLogger("b").info("quiet")
    assert _lines(capsys) == []


def test_the_console_format_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "console")
    structlog.get_logger("a").info("engine ready", pid=7)
    text = capsys.readouterr().err
    assert "engine ready" in text
    assert "pid=7" in text


def test_text_that_is_not_unicode_is_logged_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    structlog.get_logger("a").info("cannot be read", file="\udcff.jpg")
    (line,) = _lines(capsys)
    assert line["file"] == "\udcff.jpg"


def test_lifecycle_lines_are_written_at_every_level(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("error", "json")
    logging.getLogger(LIFECYCLE).info("listens on http://localhost")
    (line,) = _lines(capsys)
    assert (line["event"], line["level"]) == ("listens on http://localhost", "info")


def test_lifecycle_lines_on_a_console_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("error", "console")
    logging.getLogger(LIFECYCLE).info("listens on http://localhost")
    assert capsys.readouterr().err == "listens on http://localhost\n"


def test_warnings_of_python_are_logged(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)  # an earlier test may have captured them
        configure_logs("info", "json")
        warnings.warn("old option", DeprecationWarning, stacklevel=1)
    logging.captureWarnings(False)
    (line,) = _lines(capsys)
    assert line["logger"] == "py.warnings"
    assert "DeprecationWarning: old option" in line["event"]

"""Logging: JSON lines on stderr (text on a terminal), for this service and its libraries alike.

Call `configure_logs` once per process. Every line that is written during a request carries its
request id and trace id, and the values bound with `structlog.contextvars`.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from types import TracebackType
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict

from service.observability.log_output import LineHandler
from service.observability.request_scope import current_scope

# Loggers of libraries whose lines below WARNING are repetitive or written for each request.
_WARNINGS_ONLY = (
    "uvicorn.access",
    "uvicorn.error",
    "asyncio",
    "PIL",
    "multipart",
    "python_multipart",
)


# What the service reports to the person who starts it, whatever the log level is: its addresses,
# ready, draining, stopped, and why it could not start.
LIFECYCLE = "service.lifecycle"

_log = structlog.get_logger(__name__)


def is_json(log_format: str) -> bool:
    """Whether lines are JSON; "auto" is JSON unless stderr is a terminal."""
    return log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())


def configure_logs(level: str, log_format: str) -> None:
    """Routes structlog and the standard library's logging to stderr, in one format.

    Args:
        level: "debug", "info", "warning" or "error".
        log_format: "json", "console" or "auto" (console on a terminal).
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _add_request_ids,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    as_json = is_json(log_format)
    if not as_json:
        last: list[Any] = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    else:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_to_json)]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = LineHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    lifecycle = logging.getLogger(LIFECYCLE)
    lifecycle.propagate = False
    lifecycle.setLevel(logging.INFO)
    lifecycle.handlers = [handler if as_json else _plain_handler()]
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        library = logging.getLogger(name)
        library.handlers = []
        library.propagate = True
    for name in _WARNINGS_ONLY:
        logging.getLogger(name).setLevel(logging.WARNING)


def log_uncaught_exceptions() -> None:
    """Logs exceptions that nothing catches, in any thread, instead of printing tracebacks."""

    def uncaught(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if issubclass(kind, KeyboardInterrupt):
            return
        _log.critical("uncaught exception", exc_info=(kind, error, traceback))

    def in_thread(arguments: threading.ExceptHookArgs) -> None:
        error = arguments.exc_value
        if error is not None and not isinstance(error, SystemExit):
            name = arguments.thread.name if arguments.thread else None
            found = arguments.exc_type, error, arguments.exc_traceback
            _log.error("uncaught exception in a thread", thread=name, exc_info=found)

    def unraisable(arguments: sys.UnraisableHookArgs) -> None:
        error = arguments.exc_value
        found = error and (arguments.exc_type, error, arguments.exc_traceback)
        _log.error("ignored exception", object=repr(arguments.object), exc_info=found)

    sys.excepthook = uncaught
    threading.excepthook = in_thread
    sys.unraisablehook = unraisable


def _plain_handler() -> logging.Handler:
    handler = LineHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


def _add_request_ids(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Adds the ids of the current request; looked up only when a line is written."""
    scope = current_scope()
    if scope is not None:
        event.setdefault("request_id", scope.request_id)
        event.setdefault("trace_id", scope.trace.trace_id)
    return event


def _to_json(event: Any, **_: Any) -> str:
    try:
        return orjson.dumps(event, default=str).decode()
    except (TypeError, ValueError):  # such as a file name that is not UTF-8
        return json.dumps(event, default=str, skipkeys=True)

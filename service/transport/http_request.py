"""What the HTTP adapters share of one request besides its body.

Its id, its deadline, whether its client is still connected, and how its outcome is counted.
`RequestRefused` and `ClientGone` are failures of the HTTP exchange itself; an unusable image or
option is a `DetectionError`, as in every other adapter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from starlette.types import Receive, Scope

from service.errors import InvalidOptions, short_repr
from service.observability.metrics import Metrics
from service.observability.request_scope import record_failure
from service.transport.option_values import number_of

REQUEST_ID_HEADER = "X-Request-Id"
TIMEOUT_HEADER = "X-Request-Timeout-Ms"

_Result = TypeVar("_Result")


class RequestRefused(Exception):
    """An HTTP request that is refused before detection.

    Attributes:
        status: the HTTP status.
        code: stable, for programs.
        detail: for people; names what was wrong.
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        """Stores what the response will contain."""
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail


class ClientGone(Exception):
    """The client closed its connection before the response; none is sent."""


def request_id_of(scope: Scope) -> str:
    """The request id that `service.rest.request_context` stored in the ASGI scope."""
    request_id: str = scope["state"]["request_id"]
    return request_id


def parse_timeout_s(value: str | None) -> float | None:
    """Converts the timeout header from milliseconds to seconds.

    Raises:
        InvalidOptions: for anything but a positive number.
    """
    if value is None:
        return None
    timeout_ms = number_of(value)
    if timeout_ms is None or timeout_ms <= 0:
        detail = f"{TIMEOUT_HEADER} is {short_repr(value)}; it takes milliseconds above 0"
        raise InvalidOptions(detail)
    return timeout_ms / 1000


def deadline_of(headers: Mapping[str, str], started: float) -> float | None:
    """The deadline that the timeout header sets; None without the header.

    Args:
        headers: of the request.
        started: when the request arrived, monotonic seconds.

    Raises:
        InvalidOptions: as `parse_timeout_s`.
    """
    timeout_s = parse_timeout_s(headers.get(TIMEOUT_HEADER))
    return None if timeout_s is None else started + timeout_s


def malformed_json(detail: str) -> RequestRefused:
    """The refusal of a body that is not the JSON which is accepted."""
    return RequestRefused(400, "malformed_json", detail)


class OutcomeCounter:
    """Counts one request by its outcome when the `with` block ends.

    The outcome is "ok", "cancelled", the `code` of the exception, or "internal".
    """

    def __init__(self, metrics: Metrics, protocol: str) -> None:
        """Counts in `metrics`, under the label `protocol`."""
        self._metrics = metrics
        self._protocol = protocol

    def __enter__(self) -> Self:
        """Begins the request."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Counts the outcome; exceptions propagate."""
        if error is None:
            outcome = "ok"
        elif isinstance(error, ClientGone | asyncio.CancelledError):
            outcome = "cancelled"
        else:
            code = getattr(error, "code", None)
            outcome = code if isinstance(code, str) else "internal"
            record_failure(outcome, str(error) if isinstance(code, str) else type(error).__name__)
        self._metrics.count_request(self._protocol, outcome)


class Connection(Protocol):
    """What `http_connection` stores in a scope's state as `connection`.

    Attributes:
        lost: whether the client has disconnected.
        on_lost: called once on disconnection; for the one request that is in flight.
    """

    lost: bool
    on_lost: Callable[[], None] | None

    def abort(self) -> None:
        """Closes the connection at once; what is unsent is dropped."""


async def unless_client_leaves(
    work: Coroutine[Any, Any, _Result], scope: Scope, receive: Receive
) -> _Result:
    """Awaits `work`, and cancels it if the client disconnects first.

    Only for a request whose body has been read completely.

    Raises:
        ClientGone: when the client disconnected; `work` has ended by then.
    """
    worker = asyncio.current_task()
    assert worker is not None, "requests are served by tasks"
    left = False

    def leave() -> None:
        nonlocal left
        left = True
        worker.cancel()

    stop_watching = _watch(scope, receive, leave)
    try:
        return await work
    except asyncio.CancelledError:
        # Our own cancellation becomes ClientGone; anybody else's propagates.
        if left and worker.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        stop_watching()


def _watch(scope: Scope, receive: Receive, leave: Callable[[], None]) -> Callable[[], object]:
    """Calls `leave` when the client disconnects, until the returned function is called."""
    connection: Connection | None = scope.get("state", {}).get("connection")
    if connection is None:  # another ASGI server: only a task can wait for http.disconnect
        watcher = asyncio.ensure_future(_wait_for_disconnect(receive))
        watcher.add_done_callback(lambda ended: None if ended.cancelled() else leave())
        return watcher.cancel

    def stop() -> None:
        connection.on_lost = None

    connection.on_lost = leave
    if connection.lost:
        leave()
    return stop


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

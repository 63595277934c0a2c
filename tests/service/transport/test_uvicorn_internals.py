"""What http_connection.py and http_server.py use of uvicorn's internals."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import uvicorn
from packaging.requirements import Requirement
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.transport.head_buffer import HeadBuffer
from service.transport.http_connection import LimitedConnection
from service.transport.http_server import HttpServer

PYPROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"
OVERRIDDEN: list[tuple[type, str, tuple[str, ...]]] = [
    (HttpToolsProtocol, "connection_made", ("self", "transport")),
    (HttpToolsProtocol, "connection_lost", ("self", "exc")),
    (HttpToolsProtocol, "data_received", ("self", "data")),
    (HttpToolsProtocol, "eof_received", ("self",)),
    (HttpToolsProtocol, "on_message_begin", ("self",)),
    (HttpToolsProtocol, "on_header", ("self", "name", "value")),
    (HttpToolsProtocol, "on_headers_complete", ("self",)),
    (HttpToolsProtocol, "on_body", ("self", "body")),
    (HttpToolsProtocol, "on_message_complete", ("self",)),
    (HttpToolsProtocol, "shutdown", ("self",)),
    (HttpToolsProtocol, "on_response_complete", ("self",)),
    (HttpToolsProtocol, "resume_writing", ("self",)),
    (uvicorn.Server, "capture_signals", ("self",)),
    (uvicorn.Server, "main_loop", ("self",)),
    (uvicorn.Server, "shutdown", ("self", "sockets")),
    (uvicorn.Server, "startup", ("self", "sockets")),
]
PROTOCOL_ATTRIBUTES = (
    "client",
    "connections",
    "cycle",
    "expect_100_continue",
    "headers",
    "loop",
    "parser",
    "pipeline",
    "scope",
    "timeout_keep_alive_task",
    "transport",
    "url",
)
CYCLE_ATTRIBUTES = (
    "keep_alive",
    "more_body",
    "on_response",
    "response_complete",
    "response_started",
    "transport",
)


def test_the_installed_version_is_one_that_was_checked() -> None:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    requirements = map(Requirement, project["dependencies"])
    (checked,) = (each.specifier for each in requirements if each.name == "uvicorn")
    assert {each.operator for each in checked} == {">=", "<"}, "a range, closed on both sides"
    if uvicorn.__version__ not in checked:
        pytest.fail(
            f"service/transport/http_connection.py was checked with uvicorn {checked}, and "
            f"{uvicorn.__version__} is installed; check its overrides"
        )


@pytest.mark.parametrize(("owner", "name", "parameters"), OVERRIDDEN)
def test_overridden_methods_have_the_expected_parameters(
    owner: type, name: str, parameters: tuple[str, ...]
) -> None:
    method: Callable[..., object] | None = getattr(owner, name, None)
    assert method is not None, f"uvicorn has no {owner.__name__}.{name} any more"
    assert tuple(inspect.signature(method).parameters) == parameters


def test_every_overridden_method_is_listed() -> None:
    listed = {(owner, name) for owner, name, _ in OVERRIDDEN}
    for own, owner in ((LimitedConnection, HttpToolsProtocol), (HttpServer, uvicorn.Server)):
        overridden = {name for name in vars(own) if name in vars(owner)} - {"__init__"}
        methods = {name for name in overridden if not name.startswith("__")}
        assert {(owner, name) for name in methods} == {each for each in listed if each[0] is owner}


def test_the_attributes_that_are_used_exist() -> None:
    for owner, names in (
        (HttpToolsProtocol, PROTOCOL_ATTRIBUTES),
        (RequestResponseCycle, CYCLE_ATTRIBUTES),
    ):
        source = inspect.getsource(owner)
        missing = [name for name in names if not re.search(rf"self\.{name}\b", source)]
        assert not missing, f"uvicorn's {owner.__name__} has no {missing} any more"


def test_the_head_buffer_has_all_that_a_response_calls_of_its_transport() -> None:
    source = inspect.getsource(RequestResponseCycle)
    called = set(re.findall(r"self\.transport\.(\w+)", source))
    assert called
    assert called <= set(vars(HeadBuffer))

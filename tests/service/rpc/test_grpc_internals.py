"""What service/rpc/grpc_server.py uses of grpcio's internals."""

from __future__ import annotations

import inspect
import tomllib
from pathlib import Path

import grpc
import pytest
from grpc._cython import cygrpc
from grpc.aio import _server
from packaging.requirements import Requirement

from service.rpc.grpc_server import _CoreServer

PYPROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"
BOUND = ("grpcio", "grpcio-health-checking", "grpcio-reflection")


@pytest.mark.parametrize("package", BOUND)
def test_the_installed_version_is_one_that_was_checked(package: str) -> None:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    requirements = map(Requirement, project["dependencies"])
    (checked,) = (each.specifier for each in requirements if each.name == package)
    assert {each.operator for each in checked} == {">=", "<"}, "a range, closed on both sides"
    if grpc.__version__ not in checked:
        pytest.fail(
            f"service/rpc/grpc_server.py was checked with {package} {checked}, and grpcio "
            f"{grpc.__version__} is installed; check what it overrides"
        )


@pytest.mark.parametrize("name", ["_request_call", "add_registered_method_handlers", "start"])
def test_the_core_server_has_the_methods_that_are_used(name: str) -> None:
    assert callable(getattr(cygrpc.AioServer, name, None)), f"grpcio has no AioServer.{name}"


def test_the_method_that_is_overridden_is_a_coroutine_that_the_main_loop_awaits() -> None:
    assert _CoreServer._request_call is not cygrpc.AioServer._request_call
    assert inspect.iscoroutinefunction(_CoreServer._request_call)


def test_the_python_server_has_the_attributes_that_are_set() -> None:
    source = inspect.getsource(_server.Server)
    for name in ("_loop", "_server"):
        assert f"self.{name}" in source, f"grpcio's Server has no {name} any more"


def test_a_call_can_be_refused_without_a_handler() -> None:
    for name in ("_ServicerContext", "get_working_loop", "ExecuteBatchError"):
        assert hasattr(cygrpc, name), f"grpcio has no cygrpc.{name}"
    assert hasattr(cygrpc._ServicerContext, "abort")

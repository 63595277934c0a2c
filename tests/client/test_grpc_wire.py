"""Reading of gRPC messages and errors."""

from __future__ import annotations

import grpc
import pytest

from lite_detr_client import (
    Caller,
    ConnectionFailed,
    DeadlineExceeded,
    Engine,
    Forbidden,
    ImageTooLarge,
    NotReady,
    Overloaded,
    ServiceError,
    Unauthenticated,
)
from lite_detr_client.grpc_wire import call_metadata, read_model, read_outcome, rpc_error
from lite_detr_client.pb import detection_pb2 as pb

Status = grpc.StatusCode


def test_engines_are_read_if_present() -> None:
    engine = pb.Engine(device="cuda:0", kernel="cuda", precision="fp16", cuda_graphs=432)
    response = pb.GetModelResponse(engines=[engine, pb.Engine(device="cpu", kernel="cpu")])
    expected = (Engine("cuda:0", "cuda", "fp16", 432), Engine("cpu", "cpu", "", 0))
    assert read_model(response).engines == expected


def test_model_of_an_older_service_has_no_engines() -> None:
    assert read_model(pb.GetModelResponse(name="m")).engines == ()


def test_the_limit_of_tiles_is_read_and_missing_from_older_services() -> None:
    for wanted in (0, 64):
        response = pb.GetModelResponse(limits=pb.Limits(max_tiles=wanted))
        assert read_model(response).max_tiles == wanted
    assert read_model(pb.GetModelResponse(limits=pb.Limits())).max_tiles is None


class RpcError:
    """An error as grpc raises it."""

    def __init__(self, status: grpc.StatusCode, *metadata: tuple[str, str], detail: str = "why"):
        self.code = lambda: status
        self.details = lambda: detail
        self.trailing_metadata = lambda: metadata


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (Status.UNAVAILABLE, NotReady),
        (Status.RESOURCE_EXHAUSTED, Overloaded),
        (Status.DEADLINE_EXCEEDED, DeadlineExceeded),
        (Status.UNAUTHENTICATED, Unauthenticated),
        (Status.PERMISSION_DENIED, Forbidden),
        (Status.INTERNAL, ServiceError),
        (Status.CANCELLED, ServiceError),
        (Status.INVALID_ARGUMENT, ServiceError),
    ],
)
def test_an_unknown_code_is_treated_by_its_status(
    status: grpc.StatusCode, error: type[ServiceError]
) -> None:
    code, delay = ("lite-detr-code", "replica_lost"), ("retry-delay-ms", "1000")
    failure = rpc_error(RpcError(status, code, delay))
    assert type(failure) is error
    assert (failure.code, failure.retry_after_s) == ("replica_lost", 1)
    assert str(failure) == "replica_lost: why"
    image = pb.DetectError(code="replica_lost", status=status.value[0])
    outcome = read_outcome(pb.DetectOutcome(error=image))
    assert type(outcome) is error


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (Status.UNAVAILABLE, ConnectionFailed, "connection_failed"),
        (Status.CANCELLED, ConnectionFailed, "connection_failed"),
        (Status.RESOURCE_EXHAUSTED, Overloaded, "overloaded"),
        (Status.DEADLINE_EXCEEDED, DeadlineExceeded, "deadline_exceeded"),
        (Status.UNAUTHENTICATED, Unauthenticated, "unauthenticated"),
        (Status.PERMISSION_DENIED, Forbidden, "forbidden"),
        (Status.INTERNAL, ServiceError, "internal"),
    ],
)
def test_an_error_of_grpc_itself_gets_the_code_of_its_status(
    status: grpc.StatusCode, error: type[ServiceError], code: str
) -> None:
    failure = rpc_error(RpcError(status))
    assert (type(failure), failure.code) == (error, code)
    too_large = rpc_error(RpcError(status, detail="Received message larger than max (9 vs. 8)"))
    assert type(too_large) is ImageTooLarge


def test_metadata_has_lower_case_names() -> None:
    assert call_metadata(Caller("ldk_a\n", "high"), "mine") == (
        ("authorization", "Bearer ldk_a"),
        ("x-request-priority", "high"),
        ("x-request-id", "mine"),
    )

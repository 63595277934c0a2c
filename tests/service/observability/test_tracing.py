"""Spans as a collector receives them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from lite_detr_client import GrpcClient
from service.observability.metrics import Metrics
from service.observability.request_log import RequestLog, TracingUnavailable, open_request_log
from tests.support.fake_service import fake_settings
from tests.support.images import solid_png
from tests.support.repository import ROOT
from tests.support.running import DEFAULTS, Service

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is missing")

from tests.support.otlp_receiver import Receiver, attributes, receiving

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
UNSAMPLED = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"}
SERVER, ERROR = 2, 2  # SpanKind and StatusCode of the protocol


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "PROTOCOL", "TRACES_PROTOCOL"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def request_log(receiver: Receiver) -> Iterator[RequestLog]:
    request_log = open_request_log(fake_settings(otlp_endpoint=receiver.url))
    yield request_log
    request_log.close()


def _track(request_log: RequestLog, status: int = 200, outcome: str = "ok", **names: Any) -> str:
    """One request; returns the traceparent of its response."""
    with request_log.track("http", "POST", path="/detect", **names) as scope:
        scope.status, scope.route = status, "/detect"
        Metrics().count_request("http", outcome)
    return scope.trace.traceparent


def test_a_request_is_a_child_span_of_the_clients_span(
    request_log: RequestLog, receiver: Receiver
) -> None:
    returned = _track(request_log, traceparents=[SAMPLED["traceparent"]], request_id="order-7")
    request_log.close()
    (span,) = receiver.spans
    assert (span.name, span.kind) == ("POST /detect", SERVER)
    assert span.trace_id.hex() == TRACE_ID
    assert span.parent_span_id.hex() == PARENT_ID
    assert returned == f"00-{TRACE_ID}-{span.span_id.hex()}-01"
    assert attributes(span) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/detect",
        "url.path": "/detect",
        "url.scheme": "http",
        "lite_detr.outcome": "ok",
        "lite_detr.request_id": "order-7",
    }
    assert receiver.paths == ["/v1/traces"]
    assert receiver.resources[0]["service.name"] == "lite-detr"


def test_an_unsampled_trace_is_not_recorded(request_log: RequestLog, receiver: Receiver) -> None:
    assert _track(request_log, traceparents=[UNSAMPLED["traceparent"]]).endswith("-00")
    request_log.close()
    assert receiver.spans == []


def test_a_request_without_a_trace_is_recorded_in_a_new_one(
    request_log: RequestLog, receiver: Receiver
) -> None:
    returned = _track(request_log)
    request_log.close()
    (span,) = receiver.spans
    assert returned == f"00-{span.trace_id.hex()}-{span.span_id.hex()}-03"
    assert span.parent_span_id == b""


def test_a_server_error_is_an_error_of_the_span_and_a_client_error_is_not(
    request_log: RequestLog, receiver: Receiver
) -> None:
    _track(request_log, 500, "inference_failed")
    _track(request_log, 422, "invalid_options")
    request_log.close()
    server_error, client_error = receiver.spans
    assert (server_error.status.code, attributes(server_error)["error.type"]) == (
        ERROR,
        "inference_failed",
    )
    assert client_error.status.code != ERROR


def test_probes_have_no_span(request_log: RequestLog, receiver: Receiver) -> None:
    with request_log.track("http", "GET", path="/healthz", quiet=True):
        pass
    request_log.close()
    assert receiver.spans == []


def test_tracing_can_be_enabled_by_the_variables_of_opentelemetry(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "codes-eu")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    request_log = open_request_log(fake_settings())
    assert _track(request_log).endswith("-02")
    request_log.close()
    assert receiver.spans == []
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    request_log = open_request_log(fake_settings())
    _track(request_log, traceparents=[UNSAMPLED["traceparent"]])
    request_log.close()
    assert receiver.resources[0]["service.name"] == "codes-eu"


@pytest.mark.parametrize(
    ("variable", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")]
)
def test_tracing_can_be_disabled_by_the_variables_of_opentelemetry(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    request_log = open_request_log(fake_settings(otlp_endpoint=receiver.url))
    assert _track(request_log).endswith("-02")
    request_log.close()
    assert receiver.spans == []


def test_an_unsupported_protocol_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(TracingUnavailable, match="OTEL_EXPORTER_OTLP_PROTOCOL=grpc"):
        open_request_log(fake_settings())


def test_without_the_extra_the_error_names_setting_and_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "service.observability.tracing", None)
    with pytest.raises(TracingUnavailable, match=r"otlp_endpoint .*lite-detr-service\[otel\]"):
        open_request_log(fake_settings(otlp_endpoint="http://127.0.0.1:4318"))


@pytest.mark.slow
def test_opentelemetry_is_not_imported_unless_tracing_is_enabled() -> None:
    program = """
import sys
import service.app
from service.observability.request_log import open_request_log
from service.settings import load_settings
open_request_log(load_settings())
packages = ("opentelemetry.sdk", "opentelemetry.exporter")  # libraries may import the API
loaded = [name for name in sys.modules if name.startswith(packages)]
sys.exit(str(loaded) if loaded else 0)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_the_stages_of_an_image_are_traced_and_exported_at_the_drain(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")  # export only at the drain
    settings = {"otlp_endpoint": receiver.url, "grpc_port": "0", "fake_per_image_ms": "20"}
    service = Service(**(DEFAULTS | settings))
    try:
        service.wait_until_ready()
        port = int(service.wait_for_line(r"gRPC: \S+:(\d+)")[1])
        image = solid_png((1, 2, 3))
        response = httpx.post(f"{service.url}/detect", content=image, headers=SAMPLED, timeout=60)
        timings = response.json()["timings_ms"]
        with GrpcClient(f"127.0.0.1:{port}", timeout_s=60) as client:
            client.detect(image)
        httpx.get(f"{service.url}/readyz", headers=SAMPLED, timeout=60)
        assert receiver.spans == []
        service.process.terminate()
        assert service.end() == 0, service.lines
    finally:
        service.kill()
    http, grpc = (
        [span for span in receiver.spans if span.trace_id == root.trace_id]
        for root in sorted(
            (span for span in receiver.spans if span.kind == SERVER),
            key=lambda span: span.start_time_unix_nano,
        )
    )
    assert _tree(http) == {
        "POST /detect": "",
        "read": "POST /detect",
        "detect": "POST /detect",
        "encode": "POST /detect",
        **dict.fromkeys(("decode", "queue", "assemble", "forward", "postprocess"), "detect"),
    }
    for stage in ("decode", "queue", "forward", "postprocess"):
        ms = sum(_ms(span) for span in http if span.name == stage)
        assert ms == pytest.approx(timings[stage], abs=0.5), stage
    (root,) = [span for span in http if span.kind == SERVER]
    assert response.headers["traceparent"] == f"00-{TRACE_ID}-{root.span_id.hex()}-01"
    for span in http:
        assert root.start_time_unix_nano - 10**6 <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano + 10**6
    method = "litedetr.v1.DetectionService/Detect"
    assert _tree(grpc).items() >= {method: "", "detect": method, "forward": "detect"}.items()
    (call,) = [span for span in grpc if span.kind == SERVER]
    assert (
        attributes(call).items()
        >= {
            "rpc.system.name": "grpc",
            "rpc.method": method,
            "rpc.response.status_code": "OK",
            "lite_detr.outcome": "ok",
        }.items()
    )


def _tree(spans: list[Any]) -> dict[str, str]:
    """The parent's name by span name; empty if the parent is not among the spans."""
    names = {span.span_id: span.name for span in spans}
    return {span.name: names.get(span.parent_span_id, "") for span in spans}


def _ms(span: Any) -> float:
    return float(span.end_time_unix_nano - span.start_time_unix_nano) / 1e6


@pytest.mark.slow
def test_an_unreachable_collector_does_not_affect_responses() -> None:
    service = Service(**(DEFAULTS | {"otlp_endpoint": "http://127.0.0.1:9"}))
    try:
        service.wait_until_ready()
        response = httpx.post(f"{service.url}/detect", content=solid_png((1, 2, 3)), timeout=60)
        assert response.status_code == 200
        service.process.terminate()
        assert service.end() == 0, service.lines
    finally:
        service.kill()

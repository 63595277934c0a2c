"""A running service keeps what its OpenAPI document promises, whatever schemathesis sends.

Schemathesis is used as a library: its pytest plugin asks for another pytest than ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.support.running import DEFAULTS, Service

EXAMPLES = 50
# What no schema can say: that bytes are to be an image (it expects 2xx for any), and that a
# deadline of a nanosecond has passed (504, as documented; other server errors are refused below).
NOT_MEANT = [positive_data_acceptance, schemathesis.checks.not_a_server_error]
OPERATIONS = [
    "GET /healthz",
    "GET /metrics",
    "GET /readyz",
    "GET /samples",
    "GET /v1/models",
    "POST /detect",
]


@pytest.fixture(scope="module")
def operations() -> Iterator[dict[str, Any]]:
    service = Service(**(DEFAULTS | {"fake_per_image_ms": "0"}))
    try:
        service.wait_until_ready()
        document = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
        results: list[Any] = list(document.get_all_operations())
        found = (result.ok() for result in results)
        yield {operation.label: operation for operation in found}
        assert service.process.poll() is None
    finally:
        service.kill()


def test_every_operation_is_tried(operations: dict[str, Any]) -> None:
    assert set(OPERATIONS) <= set(operations)


@pytest.mark.parametrize("label", OPERATIONS)
def test_the_service_keeps_its_word(operations: dict[str, Any], label: str) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operations[label].as_strategy())
    def check(case: Any) -> None:
        answer = case.call_and_validate(timeout=60, excluded_checks=NOT_MEANT)
        assert answer.status_code < 500 or answer.status_code == 504

    check()

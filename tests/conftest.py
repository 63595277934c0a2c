"""What holds for every test."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_grpc_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Services started by tests leave the fixed gRPC port alone; tests of gRPC choose their own."""
    monkeypatch.setenv("LITE_DETR_GRPC_PORT", "-1")

"""The checked-in message classes are those that proto/generate.sh writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import ROOT

PACKAGES = {
    "service/rpc/pb": "detection_pb2",
    "lite_detr_client/pb": "detection_pb2",
    "service/oip/pb": "grpc_service_pb2",
}


def test_the_message_classes_are_up_to_date(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    script = ROOT / "proto" / "generate.sh"
    subprocess.run(["sh", script, sys.executable, tmp_path], check=True, timeout=120)
    for package, module in PACKAGES.items():
        for suffix in (".py", ".pyi"):
            name = module + suffix
            fresh, kept = tmp_path / package / name, ROOT / package / name
            assert fresh.read_text() == kept.read_text(), f"run: sh proto/generate.sh ({kept})"

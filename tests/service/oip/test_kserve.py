"""KServe's own SDK works over REST and gRPC."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.service.oip.running_service import Served
from tests.service.oip.triton_requests import MODEL, expected_of
from tests.support.images import solid_png

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".venv-kserve" / "bin" / "python"
SCRIPT = Path(__file__).with_name("kserve_requests.py")
IMAGE = solid_png((100, 100, 103))


@pytest.mark.skipif(not PYTHON.exists(), reason="no environment with kserve (make kserve)")
def test_the_sdk_of_kserve_sends_images(service: Served, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(IMAGE)
    done = subprocess.run(
        [PYTHON, SCRIPT, service.url, service.grpc, MODEL, path],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == 14
    detected = [value for value in results.values() if value is not True]
    assert detected == [len(expected_of(IMAGE))] * 8

"""HTTP clients of other languages work: those that offer HTTP/2 with an `Upgrade` header."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.images import solid_png
from tests.support.running import DEFAULTS, Service

JAVA_SOURCE = Path(__file__).with_name("JavaDetect.java")
ROUTES = ("/detect", "/v2/models/{model}/infer", "/v2/repository/index", "/healthz", "/nothing")


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    service = Service(**(DEFAULTS | {"fake_per_image_ms": "0"}))
    try:
        service.wait_until_ready()
        yield service
    finally:
        service.kill()


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    path.write_bytes(solid_png((1, 2, 3)))
    return path


def _curl(*arguments: str) -> tuple[str, str]:
    """Returns the response's body, and its version and status."""
    command = ["curl", "-sS", "--max-time", "60", "-w", "\n%{http_version} %{http_code}"]
    done = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
    body, _, summary = done.stdout.rpartition("\n")
    return body, summary


@pytest.mark.parametrize("transfer", ["length", "chunked", "form"])
def test_curl_with_http2_posts_an_image(service: Service, image_file: Path, transfer: str) -> None:
    arguments = {
        "length": ["--data-binary", f"@{image_file}"],
        "chunked": ["--data-binary", f"@{image_file}", "-H", "Transfer-Encoding: chunked"],
        "form": ["-F", f"file=@{image_file}"],
    }
    body, summary = _curl("--http2", *arguments[transfer], f"{service.url}/detect")
    assert summary == "1.1 200", body
    assert json.loads(body)["detections"]


@pytest.mark.parametrize("route", ROUTES)
def test_an_upgrade_offer_changes_no_response(service: Service, route: str) -> None:
    (entry,) = service.http.post(f"{service.url}/v2/repository/index").json()
    url = service.url + route.format(model=entry["name"])
    for arguments in ((), ("-d", '{"inputs": []}')):
        plain, offered = (_curl(flag, *arguments, url) for flag in ("--http1.1", "--http2"))
        assert offered[1] == plain[1]
        assert offered[0].partition("request_id")[0] == plain[0].partition("request_id")[0]


@pytest.mark.skipif(shutil.which("java") is None, reason="no JDK is installed")
def test_the_http_client_of_the_jdk_posts_images(service: Service, image_file: Path) -> None:
    command = ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", str(JAVA_SOURCE)]
    done = subprocess.run(
        [*command, f"{service.url}/detect", str(image_file)],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = done.stdout.splitlines()
    assert lines[::2] == ["HTTP_1_1 200"] * 2, done.stdout
    assert all(json.loads(line)["detections"] for line in lines[1::2])

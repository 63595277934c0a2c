"""Dockerfile and compose file: pinned, hardened, and consistent with the settings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.settings import ENV_PREFIX, Settings
from tests.ops.queries import load_yaml
from tests.support.repository import ROOT

DOCKERFILE = ROOT / "docker" / "Dockerfile"
OURS = ("detector", "detector-gpu")


def services() -> dict[str, Any]:
    found: dict[str, Any] = load_yaml("docker-compose.yml")["services"]
    return found


def test_hadolint_accepts_the_dockerfile() -> None:
    tool = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([tool, DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_image_runs_as_a_numbered_user_and_stops_by_sigterm() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert "STOPSIGNAL SIGTERM" in text
    assert "/opt/lite-detr/health_check.py" in text


def test_image_installs_the_locked_packages_by_hash() -> None:
    text = re.sub(r"\s*\\\n\s*", " ", DOCKERFILE.read_text(encoding="utf-8"))
    installs = re.findall(r"pip install (?!--disable)([^&;]+)", text)
    assert len(installs) == 4
    files = " ".join(f"-r requirements/hashes/{name}.txt" for name in ("serve", "otel", "heic"))
    assert installs[0].strip() == f"--require-hashes --no-deps {files}"
    assert installs[1].strip() == "--require-hashes --no-deps -r requirements/hashes/torch.txt"
    assert installs[2].strip().endswith("-c requirements/lock.txt torch")
    assert installs[3].strip() == "--no-deps --no-build-isolation ."


def test_dockerignore_admits_exactly_the_copied_sources() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    text = DOCKERFILE.read_text(encoding="utf-8")
    for sources in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert f"!{source}" in rules, f"{source} is copied but ignored"
            assert (ROOT / source).exists()


@pytest.mark.parametrize("source", ["docker/Dockerfile", "docker-compose.yml"])
def test_settings_in_files_are_settings_of_the_service(source: str) -> None:
    text = (ROOT / source).read_text(encoding="utf-8")
    names = set(re.findall(rf"\b{ENV_PREFIX}([A-Z_]+)(?=[=:])", text))
    names = {name for name in names if "PUBLISH" not in name}  # used only by the compose file
    assert names
    assert {name.lower() for name in names} <= Settings.model_fields.keys()


def test_plain_up_starts_service_prometheus_and_grafana() -> None:
    plain = {name for name, service in services().items() if "profiles" not in service}
    assert plain == {"detector", "prometheus", "grafana"}
    assert services()["detector-gpu"]["profiles"] == ["gpu"]
    assert services()["alertmanager"]["profiles"] == ["alerts"]


def test_every_container_is_limited_checked_and_read_only() -> None:
    for name, service in services().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["healthcheck"]["test"], name
        assert service["deploy"]["resources"]["limits"]["memory"], name


def test_foreign_images_are_pinned() -> None:
    for name, service in services().items():
        if name not in OURS:
            assert re.fullmatch(r"\S+:v?\d+\.\d+\.\d+", service["image"]), service["image"]


def test_compose_and_image_have_the_same_health_check() -> None:
    [words] = re.findall(r"CMD (\[.*health_check.*\])", DOCKERFILE.read_text(encoding="utf-8"))
    for name in OURS:
        assert services()[name]["healthcheck"]["test"] == ["CMD", *json.loads(words)]


def test_ports_are_published_on_localhost_only() -> None:
    for service in services().values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_stop_grace_period_is_longer_than_the_drain() -> None:
    settings = Settings()
    for name in OURS:
        grace = float(services()[name]["stop_grace_period"].removesuffix("s"))
        delay = float(services()[name]["environment"]["LITE_DETR_DRAIN_DELAY_SECONDS"])
        assert grace > delay + settings.drain_timeout_seconds


def test_prometheus_scrapes_the_network_name_of_the_services() -> None:
    jobs = load_yaml("docker/prometheus/prometheus.yml")["scrape_configs"]
    [job] = [job for job in jobs if job["job_name"] == "lite-detr"]
    [discovery] = job["dns_sd_configs"]
    for name in OURS:
        assert services()[name]["networks"]["default"]["aliases"] == discovery["names"]
        assert services()[name]["ports"][0].endswith(f":{discovery['port']}")


def test_all_published_ports_differ() -> None:
    # The image sets no port, so that a cloud can.
    inside = [str(Settings.model_fields[field].default) for field in ("http_port", "grpc_port")]
    assert f"EXPOSE {inside[0]} {inside[1]}" in DOCKERFILE.read_text(encoding="utf-8")
    published = [port for service in services().values() for port in service["ports"]]
    for name in OURS:
        assert [port.rpartition(":")[2] for port in services()[name]["ports"]] == inside
    outside = re.findall(r":-(\d+)}", " ".join(published))
    assert len(set(outside)) == len(outside) == len(published)


def test_alertmanager_is_found_by_its_name() -> None:
    [found] = load_yaml("docker/prometheus/prometheus.yml")["alerting"]["alertmanagers"]
    [discovery] = found["dns_sd_configs"]
    assert discovery["names"] == ["alertmanager"]
    assert services()["alertmanager"]["ports"][0].endswith(f":{discovery['port']}")


def test_kernels_are_compiled_while_the_image_is_built() -> None:
    build, _, shipped = DOCKERFILE.read_text(encoding="utf-8").partition("AS runtime")
    assert "-m model.native.prebuilt" in build
    assert "g++" in build
    assert "g++" not in shipped


def test_pulled_models_are_kept_on_a_volume() -> None:
    for name in OURS:
        [volume] = services()[name]["volumes"]
        assert volume.endswith(":/home/lite-detr/.cache/lite-detr")

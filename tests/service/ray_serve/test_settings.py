"""Which settings replicas have, and which are refused with the reason."""

from __future__ import annotations

import re
from typing import Any

import pytest

from service.ray_serve.options import RayOptions
from service.ray_serve.settings import REFUSED, replica_settings
from service.settings import Settings, SettingsError, given_settings
from tests.support.repository import ROOT

VALUES: dict[str, Any] = {
    "metrics_port": 9100,
    "cloud": "vertex",
    "devices": "cpu,cpu",
    "max_connections": 10,
    "header_timeout_seconds": 1,
    "send_timeout_seconds": 1,
    "send_max_seconds": 1,
    "grpc_keepalive_seconds": 1,
    "grpc_max_idle_seconds": 1,
    "grpc_max_connection_age_seconds": 1,
    "tls_certificate_file": "cert.pem",
    "tls_key_file": "key.pem",
    "tls_client_ca_file": "ca.pem",
    "model_control": "explicit",
    "drain_delay_seconds": 5,
}
TLS = {"tls_certificate_file": "cert.pem", "tls_key_file": "key.pem"}


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_without_effect_is_refused_with_the_reason(name: str) -> None:
    others = TLS if name.startswith("tls_") else {}
    settings = given_settings(**(others | {name: VALUES[name]}))
    with pytest.raises(SettingsError) as refusal:
        replica_settings(settings, RayOptions())
    lines = str(refusal.value).splitlines()
    [line] = [each for each in lines if each.startswith(f"{name}=")]
    assert f"LITE_DETR_{name.upper()}" in line and REFUSED[name] in line


def test_the_documentation_lists_the_options_that_are_refused() -> None:
    text = (ROOT / "docs" / "ray.md").read_text(encoding="utf-8")
    [listed] = re.findall(
        r"^These options of `serve` are refused[^:]*: (.*?)\.$", text, re.M | re.S
    )
    options = [f"--{name.replace('_', '-')}" for name in REFUSED]
    assert re.findall(r"`(--[a-z-]+)`", listed) == options


def test_defaults_and_given_defaults_are_accepted() -> None:
    replica_settings(given_settings(), RayOptions())
    replica_settings(given_settings(cloud="auto", drain_delay_seconds=0), RayOptions())


@pytest.mark.parametrize("port", ["http_port", "grpc_port"])
def test_a_port_that_is_picked_later_is_refused(port: str) -> None:
    with pytest.raises(SettingsError, match=f"{port}='0'"):
        replica_settings(given_settings(**{port: 0}), RayOptions())


@pytest.mark.parametrize(
    ("cpus", "given", "threads", "decoders"),
    [
        (1, {}, 1, 1),
        (0.5, {}, 1, 1),
        (4, {}, 4, 4),
        (16, {}, 16, 8),
        (4, {"engine_threads": 2}, 2, 4),
    ],
)
def test_threads_follow_from_the_reserved_cpus(
    cpus: float, given: dict[str, Any], threads: int, decoders: int
) -> None:
    settings = replica_settings(given_settings(**given), RayOptions(replica_cpus=cpus))
    assert (settings.engine_threads, settings.decode_threads) == (threads, decoders)


@pytest.mark.parametrize(
    ("device", "gpus", "chosen"),
    [("auto", 0, "cpu"), ("cpu", 0, "cpu"), ("auto", 1, "cuda"), ("cuda", 0.5, "cuda")],
)
def test_the_device_follows_from_the_reserved_gpus(device: str, gpus: float, chosen: str) -> None:
    options = RayOptions(replica_gpus=gpus)
    assert replica_settings(given_settings(device=device), options).device == chosen


@pytest.mark.parametrize(
    ("device", "gpus"), [("cuda", 0), ("cuda:1", 1), ("cpu", 1), ("cuda:0", 0)]
)
def test_a_device_that_ray_does_not_give_is_refused(device: str, gpus: float) -> None:
    with pytest.raises(SettingsError, match=f"device='{device}'"):
        replica_settings(given_settings(device=device), RayOptions(replica_gpus=gpus))


@pytest.mark.parametrize(
    "values",
    [
        {"min_replicas": 3, "max_replicas": 2},
        {"target_ongoing_requests": 300},
        {"replica_gpus": 2},
        {"replica_cpus": 0},
        {"min_replicas": 0},
        {"app_name": "a b"},
        {"replicas": 2},
    ],
)
def test_impossible_options_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        RayOptions(**values)


def test_no_option_has_the_name_of_a_setting() -> None:
    assert not RayOptions.model_fields.keys() & Settings.model_fields.keys()

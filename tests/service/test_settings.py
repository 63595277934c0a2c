from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import (
    ENV_PREFIX,
    Settings,
    SettingsError,
    given_settings,
    load_settings,
    service_addresses,
    unknown_variables,
)
from service.settings.loading import fit_to_memory

KNOWN = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
KUBERNETES = {
    "SERVICE_HOST": "10.0.0.1",
    "SERVICE_PORT": "8000",
    "SERVICE_PORT_HTTP": "8000",
    "PORT": "tcp://10.0.0.1:8000",
    "PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "PORT_8000_TCP_PROTO": "tcp",
    "PORT_8000_TCP_PORT": "8000",
    "PORT_8000_TCP_ADDR": "10.0.0.1",
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


def test_defaults_are_usable() -> None:
    settings = load_settings()
    assert (settings.host, settings.http_port, settings.device) == ("127.0.0.1", 8000, "auto")


def test_every_setting_is_described() -> None:
    bare = [name for name, field in Settings.model_fields.items() if not field.description]
    assert bare == []


def test_the_environment_sets_a_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITE_DETR_HTTP_PORT", "9000")
    assert load_settings().http_port == 9000


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITE_DETR_HTTP_PORT", "9000")
    assert load_settings(http_port=9001, slots=None).http_port == 9001


def test_values_can_be_text() -> None:
    settings = load_settings(http_port="0", max_wait_ms="1.5", model_cache_dir="models")
    assert (settings.http_port, settings.max_wait_ms) == (0, 1.5)
    assert settings.model_cache_dir == Path("models")


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITE_DETR_METRICS_PORT", "")
    assert load_settings().metrics_port is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("http_port", 70_000),
        ("slots", 0),
        ("max_batch_size", "many"),
        ("device", "tpu"),
        ("request_timeout_ms", 0),
        ("model_control", "always"),
    ],
)
def test_a_bad_value_is_refused_by_its_name(field: str, value: object) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(**{field: value})
    assert field in str(caught.value)
    assert f"LITE_DETR_{field.upper()}" in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://me:secret@host", "me:secret@host"])
@pytest.mark.parametrize("field", ["label_studio_url", "otlp_endpoint"])
def test_an_error_does_not_repeat_a_password(field: str, url: str) -> None:
    with pytest.raises(SettingsError, match=f"{field}.*@host") as caught:
        load_settings(label_studio=True, **{field: url})
    assert "secret" not in str(caught.value)


def test_every_bad_value_gets_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITE_DETR_SLOTS", "none")
    with pytest.raises(SettingsError) as caught:
        load_settings(http_port=-1)
    assert len(str(caught.value).splitlines()) == 2


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(SettingsError, match="http_prot"):
        load_settings(http_prot=1)


def test_the_same_port_twice_is_refused() -> None:
    with pytest.raises(SettingsError, match="metrics_port"):
        load_settings(http_port=9000, metrics_port=9000)


def test_settings_cannot_change() -> None:
    with pytest.raises(ValidationError):
        load_settings().slots = 3  # type: ignore[misc]


def test_the_variables_of_kubernetes_services_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for service in ("", "HTTP_", "GRPC_", "METRICS_"):
        for name, value in KUBERNETES.items():
            monkeypatch.setenv(f"LITE_DETR_{service}{name}", value)
    assert load_settings().model_dump() == given_settings().model_dump()
    assert load_settings(http_port=9000).http_port == 9000
    monkeypatch.setenv("LITE_DETR_GRPC_PORT", "udp://[fd00::1]:53")
    assert load_settings().grpc_port == 8001


@pytest.mark.parametrize("value", ["http://x", "8000/tcp", "10.0.0.1:8000"])
def test_other_text_is_no_port(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("LITE_DETR_HTTP_PORT", value)
    with pytest.raises(SettingsError, match="LITE_DETR_HTTP_PORT"):
        load_settings()
    with pytest.raises(SettingsError, match="http_port"):
        load_settings(http_port="tcp://10.0.0.1:8000")  # a flag is meant


@pytest.mark.parametrize("value", ["/a b", "/a?b", "/..", "/a/../b", "https://a/b", "/%2e"])
def test_a_root_path_that_is_no_plain_path_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match="root_path"):
        load_settings(root_path=value)


def test_a_port_that_is_the_address_of_a_kubernetes_service_is_reported() -> None:
    environment = {"LITE_DETR_HTTP_PORT": "tcp://10.0.0.1:8000", "LITE_DETR_GRPC_PORT": "8001"}
    [line] = service_addresses(environment, KNOWN)
    assert line.startswith("LITE_DETR_HTTP_PORT is ignored")
    assert "tcp://10.0.0.1:8000" in line


@pytest.mark.parametrize("service", ["", "HTTP_", "GRPC_", "MY_OTHER_1_", "SLOTS_"])
def test_variables_of_kubernetes_services_are_not_taken_for_misspelled_settings(
    service: str,
) -> None:
    environment = {f"LITE_DETR_{service}{name}": value for name, value in KUBERNETES.items()}
    assert unknown_variables(environment, KNOWN) == []


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("LITE_DETR_MAX_BATCHSIZE", "LITE_DETR_MAX_BATCH_SIZE"),
        ("LITE_DETR_HTTP_PROT", "LITE_DETR_HTTP_PORT"),
        ("LITE_DETR_PORT", "LITE_DETR_HTTP_PORT"),
        ("LITE_DETR_LOGLEVEL", "LITE_DETR_LOG_LEVEL"),
        ("LITE_DETR_API_KEY_FILE", "LITE_DETR_API_KEYS_FILE"),
    ],
)
def test_a_misspelled_variable_is_reported_with_the_nearest_setting(
    name: str, nearest: str
) -> None:
    environment = {name: "1", "LITE_DETR_SLOTS": "3", "PATH": "/bin"}
    [line] = unknown_variables(environment, KNOWN)
    assert line == f"{name} is ignored: there is no such setting; did you mean {nearest}?"


def test_no_setting_is_suggested_for_a_name_that_is_like_none() -> None:
    [line] = unknown_variables({"LITE_DETR_XYZZY": "1"}, KNOWN)
    assert line == "LITE_DETR_XYZZY is ignored: there is no such setting"


def test_names_and_prefixes_of_others_are_not_reported() -> None:
    environment = {"LITE_DETR_TRAIN_SIZES": "320", "LITE_DETR_DEBUG": "1", "LITE_DETR_DEBUGS": ""}
    lines = unknown_variables(environment, KNOWN, others=("LITE_DETR_TRAIN_", "LITE_DETR_DEBUG"))
    assert [line.split()[0] for line in lines] == ["LITE_DETR_DEBUGS"]


_GIB = 1 << 30


@pytest.mark.parametrize(
    ("limit", "decoding", "bodies"),
    [
        (None, 2 * _GIB, _GIB),
        (64 * _GIB, 2 * _GIB, _GIB),
        (2 * _GIB, 768 << 20, 256 << 20),
        (_GIB, 384 << 20, 128 << 20),
        (1 << 20, 64 << 20, 64 << 20),
    ],
)
def test_memory_follows_from_a_small_limit(limit: int | None, decoding: int, bodies: int) -> None:
    settings = fit_to_memory(given_settings(), limit)
    assert (settings.decode_memory_bytes, settings.max_bodies_bytes) == (decoding, bodies)


def test_memory_that_was_given_does_not_follow_from_the_limit() -> None:
    settings = fit_to_memory(given_settings(decode_memory_bytes=4 * _GIB), _GIB)
    assert (settings.decode_memory_bytes, settings.max_bodies_bytes) == (4 * _GIB, 128 << 20)


def test_the_largest_body_fits_into_the_memory_of_bodies() -> None:
    settings = fit_to_memory(given_settings(max_body_bytes=200 << 20), _GIB)
    assert settings.max_bodies_bytes == 200 << 20


def test_memory_that_follows_from_the_limit_is_not_given() -> None:
    assert fit_to_memory(given_settings(), _GIB).model_fields_set == set()


def test_settings_of_a_service_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.settings.loading.memory_limit_bytes", lambda: 2 * _GIB)
    assert load_settings().decode_memory_bytes == 768 << 20

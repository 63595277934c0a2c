from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import ENV_PREFIX, Settings, SettingsError, load_settings


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

"""`lite-detr ray`: help, refused options, and what is said where Ray is missing."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from service.cli import main
from service.cli.ray import RAY_OPTIONS
from service.ray_serve.options import RayOptions
from service.ray_serve.settings import REFUSED
from service.settings import Settings


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "TERMINAL_WIDTH"):
        monkeypatch.setenv(name, "250")
    monkeypatch.delenv("LITE_DETR_DEBUG", raising=False)
    monkeypatch.delenv("LITE_DETR_GRPC_PORT", raising=False)


class _Started:
    """Stands for `service.ray_serve.run`, which imports Ray."""

    def __init__(self) -> None:
        self.settings: Settings | None = None
        self.options: RayOptions | None = None
        self.warnings: list[str] = []

    def run(self, settings: Settings, options: RayOptions, **lines: Any) -> int:
        self.settings, self.options, self.warnings = settings, options, lines["warnings"]
        return 0


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> _Started:
    started = _Started()
    monkeypatch.setitem(sys.modules, "service.ray_serve.run", started)  # type: ignore[misc]
    return started


def test_help_has_every_option_of_ray_and_none_that_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["ray", "--help"]) == 0
    out = capsys.readouterr().out
    for spec in RAY_OPTIONS:
        assert spec.flag in out and f"[env var: {spec.env_var}]" in out and spec.help
    for name in REFUSED:
        assert f"--{name.replace('_', '-')} " not in out
    assert "--max-batch-size" in out and "docs/ray.md" in out


def test_flags_and_variables_reach_settings_and_options(
    started: _Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITE_DETR_RAY_MAX_REPLICAS", "4")
    monkeypatch.setenv("LITE_DETR_MAX_BATCH_SIZE", "3")
    assert main(["ray", "--min-replicas", "2", "--port", "9000", "--replica-cpus", "0.5"]) == 0
    assert started.settings is not None and started.options is not None
    assert (started.settings.http_port, started.settings.max_batch_size) == (9000, 3)
    options = started.options
    assert (options.min_replicas, options.max_replicas, options.replica_cpus) == (2, 4, 0.5)
    assert started.warnings == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--drain-delay-seconds", "5"], ["--drain-delay-seconds=", "not with Ray"]),
        (["--devices", "cpu,cpu"], ["--devices=", "--max-replicas"]),
        (["--metrics-port", "9100"], ["--metrics-port=", "not with Ray"]),
        (["--port", "0"], ["--http-port=", "known"]),
        (["--device", "cuda"], ["--device=", "--replica-gpus"]),
        (["--min-replicas", "3", "--max-replicas", "2"], ["--max-replicas", "min_replicas"]),
        (["--min-replicas", "many"], ["--min-replicas", "LITE_DETR_RAY_MIN_REPLICAS"]),
        (["--replica-gpus", "nan"], ["--replica-gpus"]),
        (["--no-such-option"], ["No such option"]),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    arguments: list[str], words: list[str], started: _Started, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ray", *arguments]) == 2
    err = capsys.readouterr().err
    for word in words:
        assert word in err
    assert len(err.splitlines()) == 1
    assert started.settings is None


def test_refused_variables_are_named(
    started: _Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LITE_DETR_MODEL_CONTROL", "explicit")
    assert main(["ray"]) == 2
    assert "LITE_DETR_MODEL_CONTROL" in capsys.readouterr().err


def test_a_missing_ray_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("run", "deployment"):
        monkeypatch.delitem(sys.modules, f"service.ray_serve.{name}", raising=False)
    assert main(["ray"]) == 1
    assert "lite-detr-service[ray]" in capsys.readouterr().err

"""Environment variables that no option has are reported, with the nearest one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer.main

from service.cli import app, main
from service.cli.variables import PREFIXED_COMMANDS


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments with which `serve` would start the service."""
    given: dict[str, Any] = {}

    def run(_settings: object, **arguments: Any) -> int:
        given.update(arguments)
        return 0

    monkeypatch.setattr("service.app.run", run)
    return given


def test_every_command_but_serve_has_a_prefix() -> None:
    program: Any = typer.main.get_command(app)
    assert set(program.commands) == {*PREFIXED_COMMANDS, "serve"}


def test_serve_reports_unknown_variables_and_addresses_of_services(
    started: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {
        "LITE_DETR_HTTP_PORT": "tcp://10.0.0.1:8000",
        "LITE_DETR_HTTP_SERVICE_HOST": "10.0.0.1",
        "LITE_DETR_SLOT": "4",
        "LITE_DETR_DETECT_TRESHOLD": "0.5",
        "LITE_DETR_DEBUG": "0",
        "LITE_DETR_PUBLISH_PORT": "8000",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["serve"]) == 0
    [note], [warning] = started["notes"], started["warnings"]
    assert note.startswith("LITE_DETR_HTTP_PORT is ignored")
    assert warning.startswith("LITE_DETR_SLOT is ignored")
    assert warning.endswith("did you mean LITE_DETR_SLOTS?")


@pytest.mark.parametrize(
    ("arguments", "name", "nearest"),
    [
        (["detect", "nothing.jpg"], "LITE_DETR_DETECT_TRESHOLD", "LITE_DETR_DETECT_THRESHOLD"),
        (["detect", "nothing.jpg"], "LITE_DETR_DETECT_LABEL", "LITE_DETR_DETECT_LABELS"),
        (["weights", "list"], "LITE_DETR_WEIGHTS_SHA", "LITE_DETR_WEIGHTS_SHA256"),
        (["key", "shop"], "LITE_DETR_KEY_SCOPES", "LITE_DETR_KEY_SCOPE"),
        (["train", "--batch-size", "x"], "LITE_DETR_TRAIN_SIZE", "LITE_DETR_TRAIN_SIZES"),
    ],
)
def test_other_commands_report_variables_of_their_prefix(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    name: str,
    nearest: str,
) -> None:
    monkeypatch.setattr("service.cli.offline_run.run_offline", lambda *_: True)
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LITE_DETR_SLOT", "4")  # of `serve`
    main(arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if "is ignored" in line]
    expected = f"lite-detr: {name} is ignored: there is no such setting; did you mean {nearest}?"
    assert lines == [expected]


def test_the_options_of_key_can_be_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LITE_DETR_KEY_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("LITE_DETR_KEY_SCOPE", "metrics")
    assert main(["key", "prometheus"]) == 0
    assert (tmp_path / "keys").read_text().startswith("prometheus metrics ")
    assert "is ignored" not in capsys.readouterr().err

"""The command line: help, version, flags and environment variables, one-line errors."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from model.training.options import TrainOptions
from service.__main__ import main as console_script
from service.cli import main
from service.cli.configuration import configuration_page
from service.cli.options import OptionSpec, parse_options
from service.cli.serve import SERVE_OPTIONS, settings_from_flags
from service.cli.train import TRAIN_OPTIONS
from service.settings import Settings
from tests.support.repository import ROOT

COMMANDS: tuple[list[str], ...] = (
    [],
    ["serve"],
    ["detect"],
    ["data"],
    ["data", "check"],
    ["train"],
    ["eval"],
    ["bench"],
    ["flops"],
    ["weights"],
    ["weights", "list"],
    ["weights", "pull"],
    ["weights", "convert"],
    ["weights", "inspect"],
)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Avoids wrapped words in the help text."""
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("TERMINAL_WIDTH", "250")
    monkeypatch.delenv("LITE_DETR_DEBUG", raising=False)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "program")
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    captured = capsys.readouterr()
    assert "Usage: lite-detr" in captured.out
    assert captured.err == ""


def test_no_arguments_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    for name in ("serve", "detect", "train", "eval", "weights"):
        assert f" {name} " in out


def test_version_is_that_of_the_installed_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"lite-detr {version('lite-detr-service')}"


def test_help_loads_neither_torch_nor_the_web_framework() -> None:
    script = (
        "import sys; from service.cli import main; status = main(['--help'])\n"
        "heavy = {'torch', 'fastapi', 'uvicorn', 'numpy', 'PIL', 'cv2'} & set(sys.modules)\n"
        "sys.exit(status or (str(sorted(heavy)) if heavy else 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["serve", "train"])
def test_help_names_every_flag_with_its_variable_and_meaning(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    specs = {"serve": SERVE_OPTIONS, "train": TRAIN_OPTIONS}[command]
    main([command, "--help"])
    out = capsys.readouterr().out
    for spec in specs:
        assert spec.flag in out
        assert f"[env var: {spec.env_var}]" in out
        assert spec.help, f"{spec.name} has no line of documentation"


def test_serve_has_a_flag_for_each_setting_and_no_other() -> None:
    assert [spec.name for spec in SERVE_OPTIONS] == list(Settings.model_fields)


def test_train_has_a_flag_for_each_option_and_no_other() -> None:
    assert [spec.name for spec in TRAIN_OPTIONS] == list(TrainOptions.model_fields)


@pytest.mark.parametrize("spec", SERVE_OPTIONS, ids=lambda spec: spec.name)
def test_each_serve_variable_reaches_its_setting(
    spec: OptionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = spec.name
    others = {"metrics_port": 9100, "model_cache_dir": "/models", "device": "cpu", "host": "::"}
    others |= {"devices": "cpu,cuda:1", "warm_up_seconds": 7, "model_control": "explicit"}
    others |= {"log_requests": True, "explain": True, "otlp_endpoint": "http://collector:4318"}
    others |= {"cors_origins": "https://a.test", "api_keys_file": "/keys"}
    others |= {"trusted_proxies": "10.0.0.0/8"}
    others |= {"precision": "bf16", "jpeg_decoding": "scaled"}
    tls = {"tls_certificate_file": "/c", "tls_key_file": "/k", "tls_client_ca_file": "/a"}
    studio: dict[str, object] = {"label_studio": True, "label_studio_url": "http://studio:8080"}
    studio["label_studio_token_file"] = "/token"
    for together in (tls, studio):
        if name in together:
            others |= together
            for field, given in together.items():
                monkeypatch.setenv(f"LITE_DETR_{field.upper()}", str(given))
    choices = {"log_level": "debug", "log_format": "json", "model": "some.file", "name": "a"}
    choices |= {"root_path": "/vision", "cloud": "none"}
    value = (others | choices).get(name)
    if value is None:
        value = int(getattr(Settings(), name) or 0) + 1
    monkeypatch.setenv(spec.env_var, str(value))
    assert str(getattr(settings_from_flags({}), name)).removesuffix(".0") == str(value)


def test_a_flag_wins_over_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITE_DETR_HTTP_PORT", "9001")
    assert settings_from_flags({"http_port": "9002"}).http_port == 9002


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--port", "abc"], ["--http-port", "LITE_DETR_HTTP_PORT", "'abc'"]),
        (["serve", "--http-port", "70000"], ["--http-port", "65535"]),
        (["serve", "--log-level", "loud"], ["--log-level", "'loud'"]),
        (["serve", "--prot", "1"], ["--prot", "--port"]),
        (["train", "--batch-size", "0"], ["--batch-size", "LITE_DETR_TRAIN_BATCH_SIZE"]),
        (["train", "--sizes", "320,x"], ["--sizes", "LITE_DETR_TRAIN_SIZES", "320,x"]),
        (["train", "--schedule", "linear"], ["--schedule", "linear"]),
        (["train", "--images", "x"], ["--images", "LITE_DETR_TRAIN_IMAGES", "annotations"]),
        (["train", "--dense-weight", "-1"], ["--dense-weight", "LITE_DETR_TRAIN_DENSE_WEIGHT"]),
        (["detect"], ["IMAGE"]),
        (["detect", "a.jpg", "--json", "--coco"], ["--json", "--coco"]),
        (["detect", "-", "-"], ["stdin"]),
        (["detect", "a.jpg", "--device", "gpu"], ["--device", "LITE_DETR_DEVICE"]),
        (["eval"], ["--annotations"]),
        (["weights", "pull"], ["NAME"]),
        (["no-such-command"], ["no-such-command"]),
    ],
    ids=" ".join,
)
def test_bad_usage_exits_with_2_and_names_the_argument(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("lite-detr: ")
    for word in words:
        assert word in line


def test_every_bad_serve_variable_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LITE_DETR_SLOTS", "0")
    monkeypatch.setenv("LITE_DETR_PRECISION", "steam")
    assert main(["serve"]) == 2
    err = capsys.readouterr().err
    assert "--slots" in err
    assert "--precision" in err
    assert "Traceback" not in err


def test_bad_train_variable_is_reported_like_a_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LITE_DETR_TRAIN_LEARNING_RATE", "fast")
    assert main(["train"]) == 2
    assert "LITE_DETR_TRAIN_LEARNING_RATE" in capsys.readouterr().err


def test_missing_model_exits_with_1_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "inspect", "no-such-model"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "no-such-model" in line


def test_debug_shows_the_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", "--debug", "weights", "inspect", "no-such-model"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "no-such-model" in done.stderr


def test_weights_list_names_the_published_variants(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "list"]) == 0
    out = capsys.readouterr().out
    for name in (
        "lite-dino-r50-h2l2-2p1x3",
        "lite-dino-r50-h3l1-6p1x1",
        "lite-dino-r50-h3l1-2p1x3",
    ):
        assert name in out


def test_configuration_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == configuration_page(), "run `make docs`"


def test_train_flags_are_converted_to_the_types_of_their_fields() -> None:
    given = {
        "sizes": "320, 352",
        "learning_rate": "3e-4",
        "cache": "scenes",
        "max_minutes": "90",
        "resume": True,
    }
    options = parse_options(TrainOptions, TRAIN_OPTIONS, given)
    expected = TrainOptions(
        sizes=(320, 352), learning_rate=3e-4, cache=Path("scenes"), max_minutes=90.0, resume=True
    )
    assert options == expected


def test_unreachable_mirror_exits_with_1_and_names_the_mirror(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror = ["--url", "http://127.0.0.1:9", "--model-cache-dir", str(tmp_path)]
    assert main(["weights", "pull", "lite-dino-r50-h3l1-2p1x3", *mirror]) == 1
    err = capsys.readouterr().err
    assert "127.0.0.1:9" in err
    assert "Traceback" not in err


def test_ctrl_c_during_the_imports_prints_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("service.cli.main", interrupt)
    monkeypatch.setattr(sys, "argv", ["lite-detr", "detect"])
    assert console_script() == 130

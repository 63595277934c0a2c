"""`lite-detr export`: what it writes, refuses and prints; the export itself is in tests/model."""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor

from model.export import formats
from model.export.formats import NetworkFormat
from model.weights.info import DEFAULT_MODEL_PATH, read_model_info
from service.cli import main
from service.cli.export import file_stem
from service.engine.torch_device import TorchDevice
from tests.support.repository import ROOT


class FakeFile:
    """A file that gives other or the plain results."""

    runtime = "fake 1.0"
    error = 0.0

    def __init__(self, data: bytes) -> None:
        assert data == b"a file"

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        from model.weights.checkpoint import load_detector

        detector, _ = load_detector(DEFAULT_MODEL_PATH)
        pixels = inputs[0]
        mask = torch.zeros(len(pixels), *pixels.shape[2:], dtype=torch.bool)
        with torch.inference_mode():
            output = detector(pixels, mask)
        return output.pred_logits + self.error, output.pred_boxes

    def selected(self, inputs: Sequence[Tensor]) -> Tensor:
        raise AssertionError("not reached: ties are tested elsewhere")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    fake = NetworkFormat(lambda _network, _metadata: b"a file", FakeFile)
    monkeypatch.setitem(formats.NETWORK_FORMATS, "onnx", fake)
    monkeypatch.setattr(formats, "BATCH_SIZES", (1, 2))
    return tmp_path


@pytest.fixture
def without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
        return real(name, *arguments, **options)

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(builtins, "__import__", refuse)
    yield


def test_a_file_with_the_plain_results_is_kept(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "default", "--size", "64x96"]) == 0
    output = capsys.readouterr()
    assert (folder / "lite-dino-codes.onnx").read_bytes() == b"a file"
    assert "pixels  float32 [batch, 3, 64, 96]" in output.out
    assert "fake 1.0, batches of 1 and 2: logits differ by at most" in output.out
    assert [path.name for path in folder.iterdir()] == ["lite-dino-codes.onnx"]


def test_a_file_with_other_results_is_not_kept(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeFile, "error", 0.004)
    monkeypatch.setattr(FakeFile, "selected", lambda self, inputs: plain_selection(inputs))
    (folder / "x.onnx").write_bytes(b"before")
    assert main(["export", "--size", "64x96", "--output", "x.onnx", "--overwrite"]) == 1
    error = capsys.readouterr().err
    assert "x.onnx was not written: in a batch of 1, logits differ by up to 0.004" in error
    assert (folder / "x.onnx").read_bytes() == b"before"
    assert len(list(folder.iterdir())) == 1


def plain_selection(inputs: Sequence[Tensor]) -> Tensor:
    from model.weights.checkpoint import load_detector

    detector, _ = load_detector(DEFAULT_MODEL_PATH)
    rows = []
    select = detector.transformer.select_queries

    def record(best: Tensor) -> Tensor:
        rows.append(select(best))
        return rows[0]

    detector.transformer.select_queries = record  # type: ignore[method-assign]
    with torch.inference_mode():
        detector(inputs[0], torch.zeros(len(inputs[0]), 64, 96, dtype=torch.bool))
    return rows[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model, exported as weights."""
    weights = tmp_path_factory.mktemp("exported") / "w.safetensors"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["export", "--format", "safetensors", "--output", str(weights)]) == 0
    info = read_model_info(weights)
    assert printed.getvalue() == f"{weights}: {info.name}, version {info.version}\n"
    return weights


def test_an_engine_detects_the_same_with_exported_weights(exported: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    found = []
    for path in (DEFAULT_MODEL_PATH, exported):
        device = TorchDevice(path, "cpu", torch.get_num_threads())
        result = device.run([pixels], (128, 128), [(960, 1280)])
        found.append((replace(device.model, version=""), *vars(result.detections[0]).values()))
    for original, copied in zip(*found, strict=True):
        np.testing.assert_array_equal(original, copied)
    assert len(found[0][1]) > 0


@pytest.mark.slow
def test_exported_weights_are_served(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = ROOT / "docs" / "samples" / "codes.jpg"
    assert main(["detect", "--json", "--device", "cpu", str(photo)]) == 0
    (original,) = json.loads(capsys.readouterr().out)
    ports = ["--port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--model", str(exported), *ports],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "curl --data-binary" in line:
                break
        address = re.search(r"http://[^/\s]+", line)
        assert address is not None
        url = f"{address.group()}/detect"
        headers = {"Content-Type": "image/jpeg"}
        response = httpx.post(url, content=photo.read_bytes(), headers=headers, timeout=60)
    finally:
        process.terminate()
        process.communicate(timeout=60)
    served = response.json()
    assert served["model"]["version"] == read_model_info(exported).version
    assert len(served["detections"]) == len(original["detections"]) > 0
    for ours, theirs in zip(original["detections"], served["detections"], strict=True):
        assert ours["label"] == theirs["label"]
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-3)
        assert ours["box"] == pytest.approx(theirs["box"], abs=0.5)


@pytest.mark.parametrize(
    "size", ["0x64", "64", "64x", "axb", "4097x64", "64x96x3", "-1x64", "6e1x64"]
)
def test_a_wrong_size_is_refused(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", f"--size={size}"]) == 2
    assert "HEIGHTxWIDTH" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--size", "64x64"], ["--padded"], ["--image", "a.jpg"]])
def test_weights_have_no_size(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--format", "safetensors", *flags]) == 2
    assert "weights have no size" in capsys.readouterr().err


def test_an_unknown_format_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--format", "tflite"]) == 2
    assert "torch-export" in capsys.readouterr().err


def test_files_are_not_replaced_without_overwrite(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "x.onnx").write_bytes(b"before")
    assert main(["export", "--size", "64x96", "--output", "x.onnx"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    for target, problem in (
        ("nowhere/x.onnx", "there is no folder"),
        ("-", "- is no file name"),
        ("x.pt2", "not the name of a .onnx file: name it x.onnx"),
    ):
        assert main(["export", "--output", target]) == 2
        assert problem in capsys.readouterr().err


def test_the_model_is_never_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = folder / "m.safetensors"
    weights.write_bytes(DEFAULT_MODEL_PATH.read_bytes())
    arguments = ["export", str(weights), "--format", "safetensors", "--overwrite"]
    assert main([*arguments, "--output", str(weights)]) == 2
    assert "is an input of this command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("lite-dino_v1.2", "lite-dino_v1.2"),
        ("../evil", "_evil"),
        ("/tmp/a b", "_tmp_a_b"),
        ("..", "model"),
        ("", "model"),
        ("犬\x1b\n", "犬_"),
    ],
)
def test_a_file_is_written_into_this_folder_whatever_the_name_of_the_model(
    name: str, stem: str
) -> None:
    assert file_stem(name) == stem


def test_unknown_models_and_images_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "no-such-model"]) == 1
    assert "no-such-model" in capsys.readouterr().err
    (folder / "text.jpg").write_text("no image")
    for name in ("text.jpg", "none.jpg"):
        assert main(["export", "--image", name]) == 1
        assert f"--image {name}:" in capsys.readouterr().err


@pytest.mark.usefixtures("without_onnxruntime")
def test_the_missing_extra_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export"]) == 1
    error = capsys.readouterr().err
    assert "needs onnxruntime" in error and "lite-detr-service[export]" in error


def test_a_full_disk_leaves_no_part_of_the_file(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("model.data.output_files.os.fsync", full)
    assert main(["export", "--size", "64x96", "--output", "x.onnx"]) == 1
    assert "x.onnx: No space left on device" in capsys.readouterr().err
    assert not list(folder.iterdir())

"""The ranges of maps in the metadata of a weights file."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.export.weights_file import copy_weights
from model.weights.checkpoint import copy_with_metadata, load_detector
from model.weights.header import INT8_KEY, CheckpointError
from model.weights.info import DEFAULT_MODEL_PATH, read_model_info
from model.weights.int8_ranges import encode_ranges, read_ranges
from model.weights.summary import describe

RANGES = {
    "conv1": torch.tensor([[0.0, -1.0], [1.0, 2.0], [0.5, 0.25]]),
    "conv2": torch.tensor([[0.0], [1e-9], [0.0]]),
}


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("int8") / "calibrated.safetensors"
    copy_with_metadata(DEFAULT_MODEL_PATH, target, {INT8_KEY: encode_ranges(RANGES, 8)})
    return target


def _same(path: Path) -> bool:
    found = read_ranges(path)
    return found.keys() == RANGES.keys() and all(torch.equal(found[k], RANGES[k]) for k in RANGES)


def test_a_copy_has_the_ranges_and_the_same_weights(calibrated: Path) -> None:
    assert _same(calibrated)
    before, after = (load_detector(path) for path in (DEFAULT_MODEL_PATH, calibrated))
    assert all(map(torch.equal, before[0].state_dict().values(), after[0].state_dict().values()))
    assert after[1].version != before[1].version
    assert after[1].labels == before[1].labels


def test_an_export_keeps_the_ranges(calibrated: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.safetensors"
    copy_weights(calibrated, target)
    assert _same(target)


def test_a_description_says_whether_a_model_is_calibrated(calibrated: Path) -> None:
    assert "not calibrated" in describe(DEFAULT_MODEL_PATH)
    assert "not calibrated" not in describe(calibrated)


def test_a_model_without_ranges_is_refused_with_the_command() -> None:
    with pytest.raises(CheckpointError, match="weights calibrate"):
        read_ranges(DEFAULT_MODEL_PATH)


def _base64(*rows: list[float]) -> str:
    return base64.b64encode(np.array(rows, np.float32).tobytes()).decode()


@pytest.mark.parametrize(
    "entry",
    [
        "no JSON",
        "[]",
        "{}",
        '{"ranges": []}',
        *(
            json.dumps({"ranges": {"conv1": each}})
            for each in (
                7,
                "?",
                "",
                _base64([0.0]),
                _base64([0.0], [1.0], [0.5], [0.5]),
                _base64([0.0], [float("inf")], [0.5]),
                _base64([1.0], [0.0], [0.5]),
            )
        ),
    ],
)
def test_damaged_ranges_are_refused(entry: str, tmp_path: Path) -> None:
    target = tmp_path / "damaged.safetensors"
    copy_with_metadata(DEFAULT_MODEL_PATH, target, {INT8_KEY: entry})
    assert read_model_info(target).labels  # float32 does not need them
    with pytest.raises(CheckpointError, match="int8 entry"):
        read_ranges(target)

"""Exported files in their runtimes: same results, standard operators, metadata, any batch size."""

from __future__ import annotations

import copy
import functools
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.export import weights_file
from model.export.formats import (
    NETWORK_FORMATS,
    comparison_batches,
    default_size,
    export_network,
)
from model.export.onnx_file import OnnxFile
from model.export.parity import Parity, check_parity
from model.export.torch_file import METADATA_FILE
from model.export.weights_file import copy_weights
from model.network.backbone import BACKBONES
from model.network.detector import LiteDETR
from model.network.geometry import nearest_cells
from model.weights.checkpoint import load_detector, save_checkpoint
from model.weights.info import (
    DEFAULT_MODEL_PATH,
    CheckpointError,
    ModelInfo,
    read_model_info,
)
from tests.model.network.test_detector import seeded, tiny
from tests.support import reference_cases
from tests.support.repository import ROOT
from tests.support.small_variants import (
    SmallResNet,
    parametrize_whole_family,
    shrunk,
    small_backbones,
)

__all__ = ["small_backbones"]
SIZE, ODD_SIZE = (64, 96), (75, 101)
LABELS = ("chat", "犬", "bird, small")
Export = Callable[[str, tuple[int, int], bool], tuple[bytes, Parity]]


def described(detector: LiteDETR, **changes: Any) -> ModelInfo:
    values: dict[str, Any] = {
        "name": "test",
        "version": "0" * 12,
        "config": detector.config,
        "labels": LABELS,
        "score_threshold": 0.25,
        "description": "of a test",
        "category_ids": (7, 8, 9),
    }
    return ModelInfo(**(values | changes))


def photo() -> Image.Image:
    return Image.open(ROOT / "docs" / "samples" / "codes.jpg").convert("RGB")


def test_batches_have_the_photos_and_noise_in_turn() -> None:
    image = Image.new("RGB", (200, 100), "white")
    batches = comparison_batches((60, 80), [image], padded=False)
    assert [tuple(pixels.shape) for (pixels,) in batches] == [(n, 3, 60, 80) for n in (1, 2, 3)]
    white = [float(pixels.std()) < 0.5 for (batch,) in batches for pixels in batch]
    assert white == [True, False, True, False, True, False]


def test_padded_batches_keep_the_aspect_of_photos() -> None:
    image = Image.new("RGB", (200, 100), "white")
    batches = comparison_batches((60, 80), [image], padded=True)
    assert [sizes.tolist() for _, sizes in batches][:2] == [[[40, 80]], [[60, 80], [40, 80]]]
    pixels, _ = batches[0]
    assert not pixels[0, :, 40:].any()


def test_cells_of_a_mask_are_those_of_interpolation() -> None:
    for length in (*range(1, 140), 448, 800, 1333):
        for stride in (8, 16, 32, 64):
            count = -(-length // stride)
            cells = torch.arange(length, dtype=torch.float64).view(1, 1, 1, -1)
            expected = torch.nn.functional.interpolate(cells, size=(1, count)).flatten().long()
            assert nearest_cells(length, count).equal(expected), (length, stride)


def test_default_sizes_follow_the_resize_rule() -> None:
    info = read_model_info(DEFAULT_MODEL_PATH)
    assert default_size(info, padded=False) == (384, 512)
    assert default_size(info, padded=True) == (512, 512)


def test_weights_are_copied_exactly(tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    info, original = copy_weights(DEFAULT_MODEL_PATH, copy), read_model_info(DEFAULT_MODEL_PATH)
    assert replace(info, version=original.version) == original
    assert info.version == read_model_info(copy).version
    assert abs(copy.stat().st_size - DEFAULT_MODEL_PATH.stat().st_size) < 1000


def test_weights_of_other_classes_are_copied_in_their_precision(tmp_path: Path) -> None:
    config, source = tiny(), tmp_path / "source.safetensors"
    weights = seeded(config).state_dict()
    ids = (3, 5, 900)
    save_checkpoint(
        source,
        weights,
        config,
        LABELS,
        score_threshold=0.7,
        name="m",
        category_ids=ids,
        card={"epochs": 3},
    )
    info = copy_weights(source, tmp_path / "copy.safetensors")
    assert (info.labels, info.category_ids, info.score_threshold) == (LABELS, ids, 0.7)
    assert (tmp_path / "copy.safetensors").read_bytes() == source.read_bytes()


def test_copies_that_fail_leave_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, source = tiny(), tmp_path / "source.safetensors"
    weights = seeded(config).state_dict()
    save_checkpoint(source, weights, config, LABELS, score_threshold=0.7, name="m")
    pipe, target = tmp_path / "pipe", tmp_path / "target.safetensors"
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match="pipe: is not a regular file"):
        copy_weights(source, pipe)
    target.write_bytes(b"before")

    def load(path: Path) -> tuple[LiteDETR, ModelInfo]:
        detector, info = load_detector(path)
        if path != source:
            next(detector.parameters()).data += 1
        return detector, info

    monkeypatch.setattr(weights_file, "load_detector", load)
    with pytest.raises(CheckpointError, match=r"target\.safetensors: .* not be written exactly"):
        copy_weights(source, target)
    assert pipe.is_fifo() and target.read_bytes() == b"before"
    assert sorted(tmp_path.iterdir()) == sorted([source, pipe, target])


@pytest.fixture(scope="module")
def detector() -> Iterator[LiteDETR]:
    """One layer or block of each kind, which takes a third of the time of a published network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "resnet18", f"{SmallResNet.__module__}:SmallResNet")
        yield seeded(tiny(encoder_layers=2, encoder_blocks=1, decoder_layers=2))


@pytest.fixture(scope="module")
def exported(detector: LiteDETR) -> Export:
    """Exports the detector in a format and size, padded or not, once for all tests."""

    @functools.cache
    def export(name: str, size: tuple[int, int], padded: bool) -> tuple[bytes, Parity]:
        return export_network(
            detector,
            described(detector),
            NETWORK_FORMATS[name],
            size=size,
            padded=padded,
            images=[photo()],
        )

    return export


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "padded"),
    [
        (ODD_SIZE, True),
        # Without `sizes`, positions are constants; docs/export.md exports and runs such a file.
        pytest.param(SIZE, False, marks=pytest.mark.family),
        pytest.param(SIZE, True, marks=pytest.mark.family),
        pytest.param(ODD_SIZE, False, marks=pytest.mark.family),
    ],
)
def test_onnx_files_have_the_results_standard_operators_and_metadata(
    exported: Export, size: tuple[int, int], padded: bool
) -> None:
    onnx = pytest.importorskip("onnx")
    data, parity = exported("onnx", size, padded)
    assert parity.logits < 1e-4 and parity.batch_sizes == (1, 2, 3)
    model = onnx.load_model_from_string(data)
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", 18)}
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    operators = {node.op_type for node in model.graph.node}
    assert "Gather" in operators and operators.isdisjoint({"GridSample", "NonZero", "If", "Loop"})
    shapes = {
        value.name: [
            entry.dim_param or entry.dim_value for entry in value.type.tensor_type.shape.dim
        ]
        for value in (*model.graph.input, *model.graph.output)
    }
    sizes = {"sizes": ["batch", 2]} if padded else {}
    assert shapes == {
        "pixels": ["batch", 3, *size],
        **sizes,
        "logits": ["batch", 12, 3],
        "boxes": ["batch", 12, 4],
    }
    values = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(values["labels"]) == list(LABELS)
    assert (values["name"], values["version"]) == ("test", "0" * 12)
    assert [json.loads(values[key]) for key in ("height", "width")] == list(size)
    assert json.loads(values["score_threshold"]) == 0.25
    assert json.loads(values["mean"]) == [0.485, 0.456, 0.406]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("onnx", ODD_SIZE), ("torch-export", SIZE)], ids=["onnx", "torch-export"]
)
def test_the_selection_can_be_read_from_files(
    exported: Export, detector: LiteDETR, name: str, size: tuple[int, int]
) -> None:
    network_format = NETWORK_FORMATS[name]
    pytest.importorskip((*network_format.packages, "torch")[0])
    pixels, sizes = comparison_batches(size, [photo()], padded=True)[1]
    found = network_format.load(exported(name, size, True)[0]).selected((pixels, sizes))
    mask = torch.ones(2, *size, dtype=torch.bool)
    for row, (height, width) in zip(mask, sizes.tolist(), strict=True):
        row[:height, :width] = False
    rows: list[torch.Tensor] = []
    observed = copy.deepcopy(detector)
    select = observed.transformer.select_queries
    observed.transformer.select_queries = lambda best: rows.append(select(best)) or rows[0]  # type: ignore[assignment,method-assign,func-returns-value]
    with torch.inference_mode():
        observed(pixels, mask)
    assert found.tolist() == rows[0].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("padded", [pytest.param(False, marks=pytest.mark.family), True])
def test_torch_export_files_have_the_results_and_metadata(exported: Export, padded: bool) -> None:
    data, parity = exported("torch-export", SIZE, padded)
    assert parity.logits < 1e-4
    extra = {METADATA_FILE: ""}
    torch.export.load(io.BytesIO(data), extra_files=extra)
    assert json.loads(json.loads(extra[METADATA_FILE])["labels"]) == list(LABELS)


@pytest.mark.family
@pytest.mark.usefixtures("small_backbones")
@parametrize_whole_family
def test_every_variant_is_exported(name: str) -> None:
    pytest.importorskip("onnx")
    detector = seeded(shrunk(name))
    info = described(detector, name=name)
    _, parity = export_network(detector, info, NETWORK_FORMATS["onnx"], size=SIZE)
    assert parity.logits < 2e-4


@pytest.mark.slow
@pytest.mark.family  # tests/docs exports it as ONNX, from the graph that the other format saves
@pytest.mark.parametrize("name", NETWORK_FORMATS)
def test_the_default_model_is_exported(name: str) -> None:
    pytest.importorskip("onnx")
    detector, info = load_detector(DEFAULT_MODEL_PATH)
    size = default_size(info, padded=False)
    _, parity = export_network(detector, info, NETWORK_FORMATS[name], size=size, images=[photo()])
    assert parity.logits < 1e-3


@pytest.mark.family
@pytest.mark.slow
@reference_cases.parametrize_cases(only_one_is_fast=False)
def test_reference_cases_have_the_official_outputs_in_onnxruntime(name: str) -> None:
    """The outputs of the official code, in float64, from an ONNX file in float32."""
    pytest.importorskip("onnx")
    case = reference_cases.load_case(name)
    detector = reference_cases.detector_of(name)
    images, mask = reference_cases.batch_of(case.arrays, torch.float32)
    size = (images.shape[2], images.shape[3])
    padded = bool(mask.any())
    info = described(detector, name=name)
    network_format = NETWORK_FORMATS["onnx"]
    data, _ = export_network(detector, info, network_format, size=size, padded=padded)
    sizes = torch.stack(((~mask[:, :, 0]).sum(1), (~mask[:, 0]).sum(1)), 1)
    inputs = (images, sizes) if padded else (images,)
    exported = OnnxFile(data)
    check_parity(exported, detector, [inputs])
    logits, boxes = exported.run(inputs)
    expected = {key: case.arrays[key] for key in ("pred_logits", "pred_boxes")}
    # Near ties of the selection may swap ranks in float32: queries are compared as a set.
    for index in range(len(images)):
        ours = np.concatenate((logits[index].numpy(), boxes[index].numpy()), 1)
        theirs = np.concatenate([expected[k][index] for k in ("pred_logits", "pred_boxes")], 1)
        nearest = np.array([np.abs(ours - row).max(1).min() for row in theirs])
        assert (nearest <= 1e-3).mean() > 0.97, np.sort(nearest)[-40:]

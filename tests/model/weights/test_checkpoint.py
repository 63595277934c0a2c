from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model import build_detector
from model.weights.checkpoint import load_detector, save_checkpoint
from model.weights.info import CheckpointError
from tests.support.small_weights import (
    LABELS,
    SMALL,
    join_file,
    split_file,
    weights_of,
    write_small,
)

NORM = "transformer.enc_output_norm.weight"
HEAD = "class_embed.0.bias"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    return path, write_small(path)


@pytest.fixture
def tampered(saved: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> Callable[..., str]:
    """Rewrites the header of the saved file and returns how loading it is refused."""

    def refuse(change: Callable[[dict[str, Any]], None]) -> str:
        header, tensors = split_file(saved[0].read_bytes())
        change(header)
        path = tmp_path / "tampered.safetensors"
        path.write_bytes(join_file(header, tensors))
        with pytest.raises(CheckpointError) as caught:
            load_detector(path)
        assert str(caught.value).startswith(str(path))
        return caught.value.problem

    return refuse


def save(path: Path, weights: dict[str, Tensor], **options: Any) -> None:
    settings = {"score_threshold": 0.3, "name": "small", **options}
    save_checkpoint(path, weights, SMALL, LABELS, **settings)


def with_config(header: dict[str, Any], **changes: Any) -> None:
    config = {**json.loads(header["__metadata__"]["config"]), **changes}
    header["__metadata__"]["config"] = json.dumps(config)


def test_a_saved_network_is_loaded_unchanged(saved: tuple[Path, dict[str, Tensor]]) -> None:
    path, weights = saved
    detector, info = load_detector(path)
    loaded = detector.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    assert info.config == SMALL
    assert not detector.training


def test_a_loaded_network_gives_the_same_detections(
    saved: tuple[Path, dict[str, Tensor]],
) -> None:
    detector = build_detector(SMALL).eval()
    detector.load_state_dict(saved[1])
    images, mask = torch.randn(1, 3, 96, 128), torch.zeros(1, 96, 128, dtype=torch.bool)
    with torch.inference_mode():
        expected = detector(images, mask)
        output = load_detector(saved[0])[0](images, mask)
    assert torch.equal(output.pred_logits, expected.pred_logits)
    assert torch.equal(output.pred_boxes, expected.pred_boxes)


def test_shared_tensors_are_stored_once_and_shared_after_loading(
    saved: tuple[Path, dict[str, Tensor]],
) -> None:
    header, _ = split_file(saved[0].read_bytes())
    assert HEAD in header
    assert not [name for name in header if name.startswith("transformer.decoder.class_embed")]
    assert "class_embed.1.bias" not in header
    detector, _ = load_detector(saved[0])
    assert detector.class_embed[0] is detector.class_embed[1]
    heads = dict(detector.named_parameters(remove_duplicate=False))
    assert heads["transformer.decoder.class_embed.1.bias"] is heads[HEAD]


def test_half_halves_the_file_and_loads_as_float32(
    saved: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    path = tmp_path / "half.safetensors"
    save(path, saved[1], half=True)
    assert path.stat().st_size < 0.55 * saved[0].stat().st_size
    loaded = load_detector(path)[0].state_dict()
    for name, tensor in saved[1].items():
        assert loaded[name].dtype == tensor.dtype
        expected = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(loaded[name], expected), name


def test_equal_weights_give_equal_bytes(
    saved: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    weights = saved[1]
    digests = set()
    for index, names in enumerate((list(weights), list(reversed(weights)))):
        path = tmp_path / f"{index}.safetensors"
        save(path, {name: weights[name] for name in names})
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_saving_and_loading_keep_the_random_state(
    saved: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    before = torch.random.get_rng_state()
    save(tmp_path / "a.safetensors", saved[1])
    load_detector(tmp_path / "a.safetensors")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_float64_weights_are_stored_as_float32(
    saved: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    doubled = {k: v.double() if v.is_floating_point() else v for k, v in saved[1].items()}
    save(tmp_path / "a.safetensors", doubled)
    assert load_detector(tmp_path / "a.safetensors")[0].label_enc.weight.dtype == torch.float32


def test_parameters_alone_by_one_name_each_can_be_saved(
    saved: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    alias = "transformer.decoder."
    owned = {name: value for name, value in saved[1].items() if not name.startswith(alias + "c")}
    save(tmp_path / "a.safetensors", owned)
    assert torch.equal(load_detector(tmp_path / "a.safetensors")[0].state_dict()[HEAD], owned[HEAD])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda w: w.pop(NORM), f"tensors are missing: {NORM}"),
        (lambda w: w.update(ghost=torch.ones(1)), "not this network's: ghost"),
        (lambda w: w.update({NORM: torch.ones(31)}), f"{NORM} is [31], not [32]"),
        (lambda w: w.update({NORM: torch.full((32,), torch.nan)}), f"NaN or infinity: {NORM}"),
        (lambda w: w.update({NORM: torch.full((32,), torch.inf)}), f"NaN or infinity: {NORM}"),
        (lambda w: w.update({NORM: torch.ones(32, dtype=torch.int64)}), f"{NORM} is torch.int64"),
        (
            lambda w: w.update({"class_embed.1.bias": torch.ones(3)}),
            "class_embed.0.bias and class_embed.1.bias should be one tensor but differ",
        ),
    ],
)
def test_weights_that_do_not_fit_are_not_saved(
    saved: tuple[Path, dict[str, Tensor]],
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], None],
    problem: str,
) -> None:
    weights = dict(saved[1])
    change(weights)
    with pytest.raises(CheckpointError) as caught:
        save(tmp_path / "a.safetensors", weights)
    assert problem in caught.value.problem
    assert list(tmp_path.iterdir()) == []


def test_numbers_beyond_float16_are_refused_in_half(
    saved: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    weights = {**saved[1], NORM: torch.full((32,), 1e5)}
    save(tmp_path / "whole.safetensors", weights)
    with pytest.raises(CheckpointError, match=NORM):
        save(tmp_path / "half.safetensors", weights, half=True)


def test_large_finite_numbers_are_no_infinity(
    saved: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    weights = {**saved[1], NORM: torch.full((32,), 3e38)}  # whose sum overflows
    save(tmp_path / "a.safetensors", weights)
    assert load_detector(tmp_path / "a.safetensors")[1].name == "small"


@pytest.mark.parametrize("options", [{"score_threshold": 2.0}, {"score_threshold": float("nan")}])
def test_a_file_that_could_not_be_read_is_not_written(
    saved: tuple[Path, dict[str, Tensor]], tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match="would be unreadable"):
        save(tmp_path / "a.safetensors", saved[1], **options)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_file(
    saved: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(CheckpointError, match="labels"):
        save_checkpoint(path, saved[1], SMALL, ("one",), score_threshold=0.3, name="small")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_device_or_pipe_is_not_replaced(
    saved: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    pipe = tmp_path / "a.safetensors"
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match="is not a regular file"):
        save(pipe, saved[1])
    assert pipe.is_fifo()


def test_a_folder_that_is_missing_is_named(
    saved: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="cannot be written: No such file"):
        save(tmp_path / "nowhere" / "a.safetensors", saved[1])


def test_a_missing_tensor_is_named(tampered: Callable[..., str]) -> None:
    def swap(header: dict[str, Any]) -> None:
        header["stranger"] = header.pop(NORM)

    problem = tampered(swap)
    assert f"tensors are missing: {NORM}" in problem
    assert "not this network's: stranger" in problem


def test_many_missing_tensors_are_counted(tampered: Callable[..., str]) -> None:
    def rename(header: dict[str, Any]) -> None:
        for name in [n for n in header if n.startswith("backbone")][:20]:
            header[f"x.{name}"] = header.pop(name)

    assert "and 16 more" in tampered(rename)


def test_a_tensor_of_another_shape_is_named(tampered: Callable[..., str]) -> None:
    problem = tampered(lambda header: header[NORM].update(shape=[4, 8]))
    assert problem == f"tensors of another shape: {NORM} is [4, 8], not [32]"


def test_a_tensor_of_another_dtype_is_named(tampered: Callable[..., str]) -> None:
    def as_doubles(header: dict[str, Any]) -> None:
        begin, end = header[NORM]["data_offsets"]
        header[NORM].update(dtype="I32")
        assert end - begin == 32 * 4

    assert tampered(as_doubles) == f"tensors of another dtype: {NORM} is I32, not F16 or F32"


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder_layers": 60_000, "encoder_blocks": 1},
        {"decoder_layers": 60_000},
        {"num_feature_levels": 8},
        {"num_queries": 60_000},
        {"d_model": 59_968},
        {"encoder_feedforward": 60_000},
        {"decoder_feedforward": 60_000},
        {"encoder_points": 60_000},
        {"decoder_points": 60_000},
        {"key_aware": False},
        {"key_aware_decoder": False},
        {"interleaved": False},
        {"same_loc": True},
        {"separate_keys": True},
        {"encoder_blocks": 2},
    ],
)
def test_a_config_that_its_tensors_contradict_is_refused_before_building(
    tampered: Callable[..., str], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr("model.weights.checkpoint.build_network", None)
    problem = tampered(lambda header: with_config(header, **changes))
    assert "its config contradicts its tensors" in problem
    assert next(iter(changes)) in problem


def test_another_backbone_is_refused(tampered: Callable[..., str]) -> None:
    assert "tensors are missing: backbone" in tampered(
        lambda header: with_config(header, backbone="resnet18")
    )


@pytest.mark.parametrize("bits", [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff"])
def test_numbers_that_are_not_finite_are_refused(
    saved: tuple[Path, dict[str, Tensor]], tmp_path: Path, bits: bytes
) -> None:
    header, tensors = split_file(saved[0].read_bytes())
    begin = header[NORM]["data_offsets"][0]
    path = tmp_path / "a.safetensors"
    path.write_bytes(join_file(header, tensors[:begin] + bits + tensors[begin + 4 :]))
    with pytest.raises(CheckpointError, match=f"NaN or infinity: {NORM}"):
        load_detector(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "resnet18"},
        {"same_loc": True},
        {"separate_keys": True},
        {"key_aware": False},
        {"key_aware_decoder": False},
        {"interleaved": False, "key_aware": False},
        {"encoder_layers": 4, "encoder_blocks": 2},
    ],
)
def test_every_kind_of_network_survives_the_round_trip(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = replace(SMALL, **changes)
    weights = weights_of(config)
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, weights, config, LABELS, score_threshold=0.5, name="kind")
    detector, info = load_detector(path)
    assert info.config == config
    loaded = detector.state_dict()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)

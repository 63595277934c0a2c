"""Start weights of a model for other classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from model.labels import NO_CLASS
from model.network.detector import LiteDETR, build_detector
from model.training.transfer import load_fitting
from model.weights.checkpoint import save_checkpoint
from tests.model.training.tiny import CONFIG, tiny_detector

_OLD = ("red", "blue")


def _saved(path: Path) -> Path:
    detector = tiny_detector()
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_checkpoint(
        path, detector.state_dict(), detector.config, _OLD, score_threshold=0.5, name="old"
    )
    return path


@pytest.mark.parametrize("labels", [("green", "blue", "red"), ("x", "y")], ids=["3", "2 others"])
def test_class_heads_keep_known_classes_and_start_others_from_the_mean(
    tmp_path: Path, labels: tuple[str, ...]
) -> None:
    path = _saved(tmp_path / "old.safetensors")
    old, new = tiny_detector(), tiny_detector(num_classes=len(labels))
    load_fitting(old, path)
    lines = load_fitting(new, path, labels)
    for name, tensor in old.state_dict().items():
        loaded = new.state_dict()[name]
        if "class_embed" not in name and name != "label_enc.weight":
            assert torch.equal(tensor, loaded), name
        elif name != "label_enc.weight":
            rows = [tensor[_OLD.index(x)] if x in _OLD else tensor.mean(0) for x in labels]
            torch.testing.assert_close(loaded, torch.stack(rows))
    kept = sum(label in _OLD for label in labels)
    assert any(f"{kept} of {len(labels)} classes" in line for line in lines)
    assert not any("keep their initial values" in line for line in lines)


def test_same_classes_are_loaded_as_they_are(tmp_path: Path) -> None:
    path = _saved(tmp_path / "old.safetensors")
    plain, named = tiny_detector(), tiny_detector()
    load_fitting(plain, path)
    lines = load_fitting(named, path, _OLD)
    assert len(lines) == 1
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, named.state_dict()[name])


def test_network_with_more_queries_keeps_the_content_of_the_first(tmp_path: Path) -> None:
    path = _saved(tmp_path / "old.safetensors")
    old, new = tiny_detector(), tiny_detector(num_queries=30)
    load_fitting(old, path)
    lines = load_fitting(new, path, _OLD)
    before, after = old.transformer.tgt_embed.weight, new.transformer.tgt_embed.weight
    assert torch.equal(after[:12], before)
    assert torch.equal(after[12:18], before[6:])
    assert len(lines) == 1


def _hybrid(labels: tuple[str, ...], num_queries: int = 12) -> LiteDETR:
    """A small H-DETR: heads of its own in each layer, the encoder's means "any object" first."""
    return build_detector(
        replace(
            CONFIG,
            num_classes=len(labels),
            num_queries=num_queries,
            one_to_many_queries=8,
            refined_positions=False,
            shared_heads=False,
            select_by_best_class=False,
            decoder_norm=False,
        )
    )


def _bias(detector: LiteDETR, layer: int) -> Tensor:
    """Of the class head of a decoder layer; the last one is that of the encoder."""
    return cast(Tensor, detector.class_embed[layer].bias)


def _saved_hybrid(path: Path, labels: tuple[str, ...]) -> LiteDETR:
    detector = _hybrid(labels)
    with torch.no_grad():
        for layer in range(len(detector.class_embed)):
            _bias(detector, layer).copy_(torch.arange(len(labels)) - 8.0)
        _bias(detector, -1).fill_(-8.0)[0] = 3.0
    tensors = detector.state_dict()
    save_checkpoint(path, tensors, detector.config, labels, score_threshold=0.5, name="old")
    return detector


@pytest.mark.parametrize("labels", [("scratch", "dent"), ("dog", "scratch", "cat", "dent", "x")])
def test_the_row_of_any_object_stays_first(tmp_path: Path, labels: tuple[str, ...]) -> None:
    path = tmp_path / "old.safetensors"
    _saved_hybrid(path, ("cat", "dog", "bird"))
    new = _hybrid(labels)
    load_fitting(new, path, labels)
    assert _bias(new, -1)[0] == 3.0
    assert (_bias(new, -1)[1:] < -4).all()
    known = {"cat": -8.0, "dog": -7.0, "bird": -6.0}
    expected = [known.get(label, -7.0) for label in labels]
    assert _bias(new, 0).tolist() == expected


def test_places_without_a_class_are_not_in_the_mean(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    _saved_hybrid(path, ("cat", NO_CLASS, "bird"))
    new = _hybrid(("fish",))
    with torch.no_grad():
        load_fitting(new, path, ("fish",))
    assert _bias(new, 0).tolist() == [-7.0]  # of cat and bird
    other = tmp_path / "other.safetensors"
    _saved_hybrid(other, (NO_CLASS, "cat", "bird"))
    load_fitting(new, other, ("fish",))
    assert _bias(new, 0).tolist() == [-6.5]


def test_more_queries_of_one_branch_keep_the_other_branch(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    labels = ("cat", "dog")
    old = _saved_hybrid(path, labels).query_embed
    new = _hybrid(labels, num_queries=20)
    load_fitting(new, path, labels)
    assert old is not None
    assert new.query_embed is not None
    before, after = old.weight, new.query_embed.weight
    assert torch.equal(after[:12], before[:12])
    assert torch.equal(after[12:18], before[6:12])
    assert torch.equal(after[20:], before[12:])

"""Start weights of a model for other classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.training.transfer import load_fitting
from model.weights.checkpoint import save_checkpoint
from tests.model.training.tiny import tiny_detector

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

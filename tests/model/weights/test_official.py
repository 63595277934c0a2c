from __future__ import annotations

import os
import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model import VARIANTS, build_detector
from model.labels import COCO_LABELS
from model.weights.checkpoint import load_detector
from model.weights.conversion import convert
from model.weights.info import CheckpointError
from model.weights.official import load_official
from tests.support import reference_cases
from tests.support.small_variants import shrunk
from tests.support.small_weights import SMALL_R50, weights_of, write_official

NORM = "transformer.enc_output_norm.weight"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return weights_of(SMALL_R50)


@pytest.fixture
def small_variant(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(VARIANTS, SMALL_R50.name, SMALL_R50)
    return SMALL_R50.name


def refusal(path: Path, variant: str | None = None, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_official(path, variant, **options)
    assert str(caught.value).startswith(f"{path}: ")
    return caught.value.problem


def transformer_only(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Enough to be recognised, and quick to write; not enough to be loaded."""
    stem = "backbone.0.body.layer3"
    kept = {k: v for k, v in weights.items() if not k.startswith("backbone")}
    return kept | {k: v for k, v in weights.items() if k.startswith(stem) and "conv3" in k}


class Payload:
    """Pickles to a call of os.system that leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def test_fields_that_weights_lack_come_from_the_arguments(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    path = write_official(tmp_path / "a.pth", weights, enc_scale=2, lr=np.float64(1e-4), nheads=8)
    official = load_official(path)
    expected = replace(SMALL_R50, name="lite-dino-r50-h2l2-1p1x2-custom")
    assert official.config == expected
    assert official.state_dict.keys() == weights.keys()
    build_detector(official.config).load_state_dict(official.state_dict, strict=True)


@pytest.mark.parametrize("book_size", [6, 91])
def test_unused_label_embeddings_are_left_out(
    weights: dict[str, Tensor], tmp_path: Path, small_variant: str, book_size: int
) -> None:
    classes = SMALL_R50.num_classes
    more = book_size + 1  # rows that denoising queries never have
    rows = torch.cat((weights["label_enc.weight"], torch.ones(more, SMALL_R50.d_model)))
    path = write_official(tmp_path / "a.pth", weights | {"label_enc.weight": rows})
    loaded = load_official(path, small_variant).state_dict["label_enc.weight"]
    assert torch.equal(loaded, weights["label_enc.weight"])
    assert len(loaded) == classes + 1
    fewer = weights | {"label_enc.weight": rows[:classes]}
    assert "label_enc.weight" in refusal(write_official(tmp_path / "b.pth", fewer), small_variant)


def test_wrapped_names_and_batch_counters_are_ignored(
    weights: dict[str, Tensor], tmp_path: Path, small_variant: str
) -> None:
    wrapped = OrderedDict((f"module.{name}", tensor) for name, tensor in weights.items())
    wrapped["module.backbone.0.body.bn1.num_batches_tracked"] = torch.tensor(5)
    path = write_official(tmp_path / "a.pth", wrapped)
    official = load_official(path, small_variant)
    assert official.state_dict.keys() == weights.keys()


def test_averaged_weights_are_used_on_request(
    weights: dict[str, Tensor], tmp_path: Path, small_variant: str
) -> None:
    averaged = {**weights, NORM: torch.full((32,), 2.0)}
    path = tmp_path / "a.pth"
    torch.save({"model": weights, "ema_model": averaged}, path)
    assert torch.equal(load_official(path, small_variant).state_dict[NORM], weights[NORM])
    assert load_official(path, small_variant, ema=True).state_dict[NORM][0] == 2.0
    torch.save({"model": {}, "epoch": 1}, path)
    assert refusal(path, ema=True) == "has no weights under 'ema_model'; it holds model, epoch"
    assert refusal(path) == "has no weights under 'model'; it holds model, epoch"


def test_conversion_writes_a_weights_file(
    weights: dict[str, Tensor], tmp_path: Path, small_variant: str
) -> None:
    source = write_official(tmp_path / "official.pth", weights, enc_scale=2)
    target = tmp_path / "ours.safetensors"
    info = convert(source, target, small_variant)
    assert (info.config, info.labels, info.score_threshold) == (SMALL_R50, COCO_LABELS, 0.3)
    assert "official.pth" in info.description
    loaded = load_detector(target)[0].state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def test_classes_that_are_not_cocos_need_labels(
    weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.weights.conversion.COCO_LABELS", COCO_LABELS[:90])
    source = write_official(tmp_path / "official.pth", weights, enc_scale=2)
    with pytest.raises(CheckpointError, match="91 classes, which are not COCO's"):
        convert(source, tmp_path / "ours.safetensors")
    assert not (tmp_path / "ours.safetensors").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path: Path, zipped: bool) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.pth"
    document = {"model": {"a": torch.ones(1)}, "args": Payload(trace)}
    torch.save(document, path, _use_new_zipfile_serialization=zipped)
    problem = refusal(path)
    assert "its pickle requires" in problem
    assert "system" in problem
    assert "weights_only" not in problem  # torch's advice is the very thing not to do
    assert not trace.exists()


def test_objects_beyond_the_allow_list_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": {"a": torch.ones(1)}, "where": Path("x")}, path)
    assert "its pickle requires pathlib" in refusal(path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_official(tmp_path / "whole.pth", {"a": torch.ones(300)}).read_bytes()
    path = tmp_path / "cut.pth"
    for cut in [0, 1, 2, 10, *range(0, len(whole), len(whole) // 25)]:
        path.write_bytes(whole[:cut])
        assert "truncated or no PyTorch checkpoint" in refusal(path) or cut < 3, cut


@pytest.mark.parametrize("content", [b"hello", b"<html>sign in</html>", b"PK\x03\x04", bytes(99)])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    assert refusal(path)
    assert refusal(tmp_path / "nowhere.pth") == "no such file"


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ([1], "holds a list, not a dict of weights"),
        ({"state_dict": {}}, "no weights under 'model'; it holds state_dict"),
        ({"model": [torch.ones(1)]}, "no weights under 'model'"),
        ({"model": {"a": "text"}}, "holds more than named tensors: a"),
        ({"model": {7: torch.ones(1)}}, "holds more than named tensors: 7"),
        ({"model": {"a": torch.ones(1).expand(10**6)}}, "holds more than named tensors: a"),
        ({"model": {"a": torch.ones(1).to_sparse()}}, "holds more than named tensors: a"),
        ({"model": {"a": torch.ones(1)}}, "backbone (unknown)"),
    ],
)
def test_documents_of_another_shape_are_refused(
    tmp_path: Path, document: object, problem: str
) -> None:
    path = tmp_path / "a.pth"
    torch.save(document, path)
    assert problem in refusal(path)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["transformer.reference_points.weight"], "is a one-stage Deformable DETR"),
        (["backbone.0.patch_embed.proj.weight"], "(unknown), not resnet50 or swin_tiny; its arg"),
        ([f"backbone.0.body.layer3.{i}.conv3.weight" for i in range(23)], "(resnet101)"),
        ([f"backbone.0.layers.2.blocks.{i}.norm1.weight" for i in range(18)], "(swin_large)"),
        ([f"backbone.0.body.layers.2.blocks.{i}.norm1.weight" for i in range(2)], "(another Swin)"),
    ],
)
def test_related_networks_are_refused_by_name(
    tmp_path: Path, names: list[str], problem: str
) -> None:
    tensors = {name: torch.ones(768) for name in names}
    path = write_official(tmp_path / "a.pth", tensors, backbone="swin_L_384_22k")
    assert problem in refusal(path)


def _narrow(name: str) -> dict[str, Any]:
    """Narrow weights of a variant with its real backbone, and the arguments of its training."""
    config = shrunk(name)
    arguments = {
        "nheads": config.num_heads,
        "enc_scale": config.high_level_scales,
        "num_queries_one2one": config.num_queries,
        "num_queries_one2many": config.one_to_many_queries,
        "topk": config.max_detections,
    }
    return {"config": config, "weights": weights_of(config), "arguments": arguments}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        pytest.param(
            "lite-dino-swint-h2l2-2p1x3",
            "lite-dino-swint-h2l2-2p1x3-custom",
            marks=pytest.mark.slow,
        ),
        ("lite-deformable-detr-r50-h3l1-3p1x2", "lite-deformable-detr-r50-h3l1-3p1x2-custom"),
        pytest.param("dino-r50-4scale", "dino-r50-custom", marks=pytest.mark.slow),
        pytest.param("deformable-detr-r50", "deformable-detr-r50-custom", marks=pytest.mark.slow),
        ("h-detr-swint", "h-detr-swint-custom"),
    ],
)
def test_detectors_of_the_family_are_recognised(name: str, found: str, tmp_path: Path) -> None:
    narrow = _narrow(name)
    path = write_official(tmp_path / "a.pth", narrow["weights"], **narrow["arguments"])
    official = load_official(path)
    assert official.config == replace(narrow["config"], name=found)
    build_detector(official.config).load_state_dict(official.state_dict, strict=True)


def test_queries_that_the_weights_do_not_tell_come_from_arguments_or_are_refused(
    tmp_path: Path,
) -> None:
    """Deformable DETR with learned content of 30 queries, and H-DETR's 12 and 18."""
    narrow = _narrow("h-detr-r50")
    arguments = narrow["arguments"]
    without = {k: v for k, v in arguments.items() if "one2" not in k}
    path = write_official(tmp_path / "a.pth", narrow["weights"], **without)
    assert "has 30 learned queries and does not say how many" in refusal(path)
    split = {"num_queries_one2one": 30, "num_queries_one2many": 0}
    path = write_official(tmp_path / "a.pth", narrow["weights"], **{**arguments, **split})
    config = load_official(path).config
    assert (config.num_queries, config.one_to_many_queries) == (30, 0)
    problem = refusal(path, "h-detr-r50")
    assert "num_queries=30, unlike h-detr-r50" in problem or "num_heads=2" in problem


def test_weights_of_another_detector_or_backbone_are_not_the_variant(tmp_path: Path) -> None:
    narrow = _narrow("deformable-detr-r50")
    path = write_official(tmp_path / "a.pth", narrow["weights"])
    assert "refined_positions is False in the weights" in refusal(path, "dino-r50-4scale")
    assert "learned_content is False in the weights" in refusal(path, "h-detr-r50")
    assert "the backbone is resnet50 in the weights" in refusal(path, "h-detr-swint")


def test_a_missing_enc_scale_is_requested(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = write_official(tmp_path / "a.pth", transformer_only(weights))
    problem = refusal(path)
    assert "enc_scale" in problem
    assert "--enc-scale 3 for H3L1, 2 for H2L2" in problem
    assert "lite-dino-r50-h3l1-2p1x3" in problem


def test_sources_of_enc_scale_must_agree(
    weights: dict[str, Tensor], tmp_path: Path, small_variant: str
) -> None:
    path = write_official(tmp_path / "a.pth", transformer_only(weights), enc_scale=3)
    assert "enc_scale says 3, the variant says 2" in refusal(path, small_variant)
    assert "high_level_scales says 2" in refusal(path, high_level_scales=2)


def test_impossible_scales_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = write_official(tmp_path / "a.pth", transformer_only(weights))
    assert "high_level_scales=9" in refusal(path, high_level_scales=9)


def test_weights_that_are_not_the_variant_are_refused(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    path = write_official(tmp_path / "a.pth", transformer_only(weights))
    problem = refusal(path, "lite-dino-r50-h2l2-2p1x3")
    assert "is not the variant lite-dino-r50-h2l2-2p1x3: d_model is 32 in the weights" in problem


def test_arguments_that_are_not_the_variants_are_refused(
    weights: dict[str, Tensor], tmp_path: Path, small_variant: str
) -> None:
    path = write_official(tmp_path / "a.pth", transformer_only(weights), nheads=4)
    assert "num_heads=4, unlike small-r50" in refusal(path, small_variant)


def test_an_unknown_variant_is_refused(tmp_path: Path) -> None:
    assert "'yolo' is no variant" in refusal(tmp_path / "a.pth", "yolo")


def test_irregular_blocks_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    odd = {k: v for k, v in transformer_only(weights).items() if ".layers.1.linear12" not in k}
    path = write_official(tmp_path / "a.pth", odd, enc_scale=2)
    assert "end at layers [0], which is no regular interleaving" in refusal(path)


def test_mixed_attention_is_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    name = "transformer.encoder.layers.0.self_attn.attention_weights.weight"
    path = write_official(tmp_path / "a.pth", {**transformer_only(weights), name: torch.ones(1)})
    assert "mixes key-aware and plain attention" in refusal(path)


def test_key_aware_attention_in_the_decoder_only_is_refused(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    encoder = re.compile(r"(transformer\.encoder\.layers\.\d\.self_attn\.)query_proj\.weight")
    names = [match[1] for name in weights if (match := encoder.fullmatch(name))]
    plain = {f"{name}attention_weights.weight": torch.ones(1) for name in names}
    path = write_official(tmp_path / "a.pth", {**transformer_only(weights), **plain})
    assert "key-aware attention in the decoder only" in refusal(path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({NORM: None}, f"tensors are missing: {NORM}"),
        ({"class_embed.1.bias": None}, "tensors are missing: class_embed.1.bias"),
        ({"ghost": torch.ones(1)}, "not this network's: ghost"),
        ({NORM: torch.ones(31)}, f"{NORM} is [31], not [32]"),
        ({NORM: torch.full((32,), torch.nan)}, f"NaN or infinity: {NORM}"),
        ({NORM: torch.ones(32, dtype=torch.int64)}, f"{NORM} is torch.int64"),
        ({"class_embed.1.bias": torch.ones(91)}, "class_embed.0.bias and class_embed.1.bias"),
        ({"class_embed.0.weight": None}, "tensors are missing: class_embed.0.weight"),
        ({"transformer.level_embed": torch.ones(4)}, "has not rank 2"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    weights: dict[str, Tensor],
    tmp_path: Path,
    small_variant: str,
    changes: dict[str, Tensor | None],
    problem: str,
) -> None:
    changed = {k: v for k, v in {**weights, **changes}.items() if v is not None}
    assert problem in refusal(write_official(tmp_path / "a.pth", changed), small_variant)


@reference_cases.parametrize_cases(only_one_is_fast=True)
def test_official_reference_weights_are_recognised_and_load(name: str, tmp_path: Path) -> None:
    meta = reference_cases.load_case(name).meta
    config = reference_cases.config_of(meta)
    source = tmp_path / "official.pth"
    weights = reference_cases.weights_of(meta)
    write_official(source, weights, enc_scale=config.high_level_scales)
    official = load_official(source)
    assert replace(official.config, name=config.name) == config
    assert list(official.state_dict) == list(weights)
    assert {k: list(v.shape) for k, v in official.state_dict.items()} == {
        k: shape for k, shape in meta["state_dict"].items() if k in official.state_dict
    }

"""Learning rate, averaging, parameter groups, options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from model.training.ema import ExponentialAverage
from model.training.optimizer import build_optimizer, set_learning_rate
from model.training.options import TrainOptions
from model.training.schedule import learning_rate_factor, run_progress
from tests.model.training.tiny import tiny_detector, tiny_options

_OUT = Path("unused")


def test_cosine_warms_up_and_anneals_to_its_end() -> None:
    options = tiny_options(_OUT, warmup_iterations=10, final_lr_factor=0.01)
    assert learning_rate_factor(options, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate_factor(options, 50, 0.0) == pytest.approx(1.0)
    assert learning_rate_factor(options, 50, 1.0) == pytest.approx(0.01)


def test_step_schedule_drops_by_ten_at_each_milestone() -> None:
    options = tiny_options(_OUT, schedule="step", step_milestones=(0.5, 0.9))
    factors = [learning_rate_factor(options, 99, progress) for progress in (0.4, 0.6, 0.95)]
    assert factors == pytest.approx([1.0, 0.1, 0.01])


def test_flat_schedule_falls_in_its_last_part_only() -> None:
    options = tiny_options(_OUT, schedule="flat", anneal_share=0.25, final_lr_factor=0.01)
    places = (0.1, 0.75, 0.875, 1.0)
    factors = [learning_rate_factor(options, 99, progress) for progress in places]
    assert factors == pytest.approx([1.0, 1.0, 0.505, 0.01])
    forever = options.changed(anneal_share=0.0)
    assert learning_rate_factor(forever, 99, 1.0) == pytest.approx(1.0)


def test_time_limit_sets_the_progress_on_a_slow_machine() -> None:
    options = tiny_options(_OUT, max_iterations=1000, max_minutes=10)
    assert run_progress(options, 100, 300.0) == pytest.approx(0.5)
    assert run_progress(options, 900, 300.0) == pytest.approx(0.9)
    assert run_progress(options, 100, 601.0) == 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("sizes", ()),
        ("max_minutes", -1.0),
        ("final_share", 1.5),
    ],
)
def test_impossible_option_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainOptions(**{field: value})
    assert [item["loc"] for item in caught.value.errors()] == [(field,)]


def test_images_without_annotations_are_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="annotations and images require each other"):
        TrainOptions(images=Path("only"))


def test_parameter_groups_have_their_rates_and_decays() -> None:
    detector = tiny_detector()
    options = tiny_options(_OUT, backbone_lr_factor=0.5, sampling_lr_factor=0.1)
    optimizer = build_optimizer(detector, options)
    set_learning_rate(optimizer, 0.5)
    found = {
        id(parameter): (group["lr"] / options.learning_rate, group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    decay = options.weight_decay
    named = dict(detector.named_parameters())
    offsets = "transformer.encoder.layers.0.self_attn.sampling_offsets"
    assert found[id(named[f"{offsets}.weight"])] == pytest.approx((0.05, decay))
    assert found[id(named[f"{offsets}.bias"])] == pytest.approx((0.05, 0.0))
    assert found[id(detector.label_enc.weight)] == pytest.approx((0.5, 0.0))
    assert found[id(named["backbone.0.body.conv_stem.weight"])] == pytest.approx((0.25, decay))
    assert len(found) == len(list(detector.parameters()))


def test_frozen_parameters_have_no_group() -> None:
    detector = tiny_detector()
    detector.backbone.requires_grad_(False)
    optimizer = build_optimizer(detector, tiny_options(_OUT))
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == sum(parameter.requires_grad for parameter in detector.parameters())


def test_average_follows_the_weights_and_keeps_shared_names() -> None:
    first = nn.Linear(2, 2)
    module = nn.ModuleDict({"a": first, "b": first})
    average = ExponentialAverage(module, decay=0.5, warmup=1)
    with torch.no_grad():
        first.weight.fill_(1.0)
        first.bias.fill_(1.0)
    for _ in range(30):
        average.update(module)
    full = average.full_state(module)
    assert full.keys() == module.state_dict().keys()
    torch.testing.assert_close(full["b.weight"], torch.ones(2, 2))
    assert len(average.state) == 2


def test_average_of_another_model_is_refused() -> None:
    average = ExponentialAverage(nn.Linear(2, 2), decay=0.5, warmup=1)
    with pytest.raises(ValueError, match="does not fit"):
        average.load({"other": torch.zeros(1)}, 1)

"""The registry of loss terms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.training import duplicates, losses
from model.training.batches import collate
from model.training.loss_terms import LOSS_TERMS, LossTerm, weight_option
from model.training.losses import LossInputs
from model.training.objective import Objective
from model.training.options import TrainOptions, options_class
from model.training.report import draw_curve, read_log
from model.training.sources import CacheSource
from service.cli.options import model_options
from tests.model.training.tiny import LABELS, tiny_detector, tiny_options, tiny_trainer, write_cache


@pytest.mark.parametrize("name", LOSS_TERMS)
def test_term_has_a_function_and_an_option(name: str) -> None:
    assert callable(getattr(losses, LOSS_TERMS[name].function))
    assert TrainOptions.model_fields[weight_option(name)].default == LOSS_TERMS[name].weight


@pytest.mark.parametrize("name", LOSS_TERMS)
def test_term_with_weight_0_is_left_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_COVERED", 1e-3)  # boxes of fresh weights cover little
    source = CacheSource(write_cache(tmp_path, 2), LABELS)
    batch = collate([source.load(0), source.load(1)])
    found = []
    hybrid = {"refined_positions": False, "one_to_many_queries": 12}
    changes = hybrid if name == "one_to_many" else {}
    for weight in (1.0, 0.0):
        torch.manual_seed(0)
        options = tiny_options(tmp_path, **{weight_option(name): weight})
        detector = tiny_detector(**changes).train()
        found.append(Objective(detector, options, None).losses(batch).values())
    whole, rest = found
    assert whole[name] > 0 == rest[name]
    assert rest["total"] == pytest.approx(whole["total"] - whole[name], rel=1e-4)


def test_new_term_appears_in_options_total_log_and_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def extra_loss(inputs: LossInputs) -> Tensor:
        return 40 + 0 * inputs.output.pred_logits.sum()

    monkeypatch.setattr(losses, "extra_loss", extra_loss, raising=False)
    monkeypatch.setitem(LOSS_TERMS, "extra", LossTerm("extra_loss", "extra loss", weight=3.0))
    extended = options_class(LOSS_TERMS)
    [option] = [o for o in model_options(extended, "LITE_DETR_TRAIN_") if o.name == "extra_weight"]
    assert (option.flag, option.default) == ("--extra-weight", 3.0)
    options = extended(**{**dict(tiny_options(tmp_path, max_iterations=4)), "extra_weight": 2.0})
    tiny_trainer(options, CacheSource(write_cache(tmp_path), LABELS)).run()  # type: ignore[arg-type]
    rows = read_log(tmp_path)
    assert len(rows) == 2
    for row in rows:
        assert row["extra"] == pytest.approx(80)
        assert row["total"] == pytest.approx(sum(row[name] for name in LOSS_TERMS), rel=1e-5)
    curve = np.asarray(draw_curve(rows))
    monkeypatch.delitem(LOSS_TERMS, "extra")
    assert (curve != np.asarray(draw_curve(rows))).any()

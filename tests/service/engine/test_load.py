"""The threads of a model that is loaded: those given, of OMP_NUM_THREADS, or of the CPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from service.engine import load
from service.engine.load import load_from_settings, load_predictor
from service.settings import given_settings

pytestmark = pytest.mark.usefixtures("threads_as_before")

CPUS = 3


@pytest.fixture(autouse=True)
def cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "usable_cpus", lambda: CPUS)


@pytest.mark.parametrize(
    ("value", "threads"),
    [("1", 1), ("2", 2), (" 5 ", 5)]
    + [(value, CPUS) for value in ("", "0", "-1", "two", "1.5", "2,1", "1025", "9" * 30)],
)
def test_threads_that_are_not_given_are_those_of_the_environment(
    weights: Path, monkeypatch: pytest.MonkeyPatch, value: str, threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    load_predictor(weights, "cpu")
    assert torch.get_num_threads() == threads


def test_without_the_variable_all_usable_cpus_are_used(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    load_predictor(weights, "cpu")
    assert torch.get_num_threads() == CPUS


def test_a_setting_takes_precedence_over_the_environment(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    load_predictor(weights, "cpu", threads=1)
    assert torch.get_num_threads() == 1
    load_from_settings(given_settings(model=str(weights), device="cpu", engine_threads=4))
    assert torch.get_num_threads() == 4

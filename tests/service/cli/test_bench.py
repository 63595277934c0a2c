"""`lite-detr bench`: figures of this machine, as a table and as JSON."""

from __future__ import annotations

import json

import pytest

from model import ops
from service.cli import main
from service.cli.bench_run import Figures, KernelFigures, ModelFigures, print_tables


def test_json_has_figures_of_kernels_and_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "cpu", "--seconds", "0.1", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["kernels"] == ops.implementation_name("cpu")
    assert [row["queries"] for row in figures["kernel_rows"]] == [5523, 900, 5523, 900]
    (model,) = figures["model_rows"]
    assert 0 < model["padded_height"] <= model["padded_width"]
    for row in (*figures["kernel_rows"], model):
        assert row["ratio"] == pytest.approx(row["pytorch_ms"] / row["ours_ms"], rel=0.05)
    assert model["images_per_second"] == pytest.approx(1000 / model["ours_ms"], rel=0.05)


def test_table_names_machine_and_rows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    kernel = KernelFigures("plain, decoder", 900, "float16", 12.5, 0.5, 25.0)
    model = ModelFigures(8, 384, 512, 80.0, 20.0, 400.0, 4.0)
    print_tables(Figures("codes", "a card", "cuda", 2, "2.0", (kernel,), (model,)))
    out = capsys.readouterr().out
    assert "codes on a card, attention by cuda" in out
    for words in ("plain, decoder", "float16", "25.0x", "512 x 384", "400.00", "4.0x"):
        assert words in out


def test_the_name_of_a_model_is_shown_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    for name in ("doors [left]", "[/] off", "bolts :bomb:"):
        print_tables(Figures(name, "a card", "cpu", 2, "2.0", (), ()))
        out = capsys.readouterr().out
        assert f"{name} on a card, attention by cpu, 2 threads, torch 2.0" in out


@pytest.mark.parametrize("seconds", ["0", "-1", "1000"])
def test_senseless_durations_are_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--seconds", seconds]) == 2
    assert "--seconds: must be above 0" in capsys.readouterr().err


def test_unknown_model_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--model", "no-such-model", "--seconds", "0.1"]) == 1
    error = capsys.readouterr().err
    assert "no-such-model" in error
    assert error.count("\n") == 1

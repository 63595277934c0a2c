"""`lite-detr flops`: counts by part, as text and as JSON."""

from __future__ import annotations

import json

import pytest

from service.cli import main


def test_the_default_model_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "default", "--size", "64x96", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["height"], document["width"]) == (64, 96)
    gflops = document["gflops"]
    assert gflops["total"] == pytest.approx(gflops["backbone"] + gflops["head"], abs=0.01)
    assert 0 < document["parameters_millions"] < 10


def test_without_a_size_the_model_resizes_a_4_to_3_image(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["flops", "default"]) == 0
    out = capsys.readouterr().out
    assert "input 336x448" in out
    assert "encoder" in out


@pytest.mark.parametrize("size", ["0x64", "64", "64x", "axb", "9999x64", "64x96x3", "-1x64"])
def test_a_wrong_size_is_refused(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "default", f"--size={size}"]) == 2
    assert "HEIGHTxWIDTH" in capsys.readouterr().err


def test_two_sizes_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "default", "--size", "64x64", "--coco-sizes"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_an_unknown_model_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "no-such-model"]) == 1
    assert "no-such-model" in capsys.readouterr().err

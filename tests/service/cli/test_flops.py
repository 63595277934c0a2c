"""`lite-detr flops`: counts by part, as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.cli import main


def test_the_default_model_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "default", "--size", "64x96", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["height"], document["width"]) == (64, 96)
    gflops = document["gflops"]
    assert gflops["total"] == pytest.approx(gflops["backbone"] + gflops["head"], abs=0.01)
    assert 0 < document["parameters_millions"] < 10
    assert 0 < document["included_gflops"]["read_only_values"] < gflops["encoder"]
    assert 0 < document["included_gflops"]["samples"] < gflops["head"]


def test_without_a_size_the_model_resizes_a_4_to_3_image(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["flops", "default"]) == 0
    out = capsys.readouterr().out
    assert "input 384x512" in out
    assert "encoder" in out


@pytest.mark.slow
@pytest.mark.family  # 36 sizes
def test_the_first_images_of_coco_are_averaged(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "default", "--coco-sizes", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["images"] == 100
    assert document["gflops"]["total"] > 0


@pytest.mark.parametrize("size", ["0x64", "64", "64x", "axb", "9999x64", "64x96x3", "-1x64"])
def test_a_wrong_size_is_refused(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "default", f"--size={size}"]) == 2
    assert "HEIGHTxWIDTH" in capsys.readouterr().err


def test_two_sizes_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "default", "--size", "64x64", "--coco-sizes"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_the_first_images_of_a_data_set_are_averaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "instances.json"
    first = {"id": 1, "height": 480, "width": 640}
    others = [{"id": 2 + number, "height": 640, "width": 480} for number in range(120)]
    path.write_text(json.dumps({"images": [*others, first]}))
    assert main(["flops", "default", "--annotations", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["images"] == 100
    assert (document["height"], document["width"]) == (511, 385)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("no JSON", "not COCO-format JSON: Expecting value"),
        *((text, "it has no list 'images'") for text in ("[]", "{}", '{"images": 3}')),
        ('{"images": []}', "or an empty one"),
        *(
            (f'{{"images": [{image}]}}', "images[0] has no id, or no height and width")
            for image in (
                "3",
                '{"id": 1}',
                '{"id": "a", "height": 4, "width": 4}',
                '{"id": 1, "height": 4, "width": 0}',
                '{"id": 1, "height": NaN, "width": 4}',
                '{"id": 1, "height": 4, "width": 1e12}',
            )
        ),
    ],
)
def test_a_file_without_sizes_is_refused(
    text: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "instances.json"
    path.write_text(text)
    assert main(["flops", "default", "--annotations", str(path)]) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(("name", "problem"), [("none", "No such file"), ("/dev/zero", "a device")])
def test_a_file_that_cannot_be_read_is_refused(
    name: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["flops", "default", "--annotations", name]) == 2
    assert f"{name}: " in (error := capsys.readouterr().err) and problem in error


def test_an_unknown_model_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "no-such-model"]) == 1
    assert "no-such-model" in capsys.readouterr().err

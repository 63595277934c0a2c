"""The drawings in the documentation match the scripts that generate them."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ET

from PIL import Image

from tests.support.repository import ROOT

IMAGES = ROOT / "docs" / "images"


def test_architecture_drawing_is_up_to_date() -> None:
    generated = runpy.run_path(str(IMAGES / "draw_architecture.py"))["drawing"]()
    committed = (IMAGES / "architecture.svg").read_text(encoding="utf-8")
    assert generated == committed, "python docs/images/draw_architecture.py"
    assert ET.fromstring(committed).tag.endswith("svg")


def test_boxes_of_the_architecture_do_not_overlap() -> None:
    root = ET.parse(IMAGES / "architecture.svg").getroot()
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    boxes = [each.attrib for each in root.iter() if each.get("rx") == "8"]
    places = [tuple(float(box[key]) for key in ("x", "y", "width", "height")) for box in boxes]
    assert len(places) == 14
    for number, (x, y, w, h) in enumerate(places):
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
        for other_x, other_y, other_w, other_h in places[:number]:
            apart_sideways = x >= other_x + other_w or other_x >= x + w
            assert apart_sideways or y >= other_y + other_h or other_y >= y + h


def test_figure_of_an_explanation_has_the_size_of_figures_and_is_small() -> None:
    with Image.open(IMAGES / "explain.jpg") as image:
        assert image.size == (1504, 1202)
    assert (IMAGES / "explain.jpg").stat().st_size < 400_000


def test_screenshot_of_the_page_is_wide_and_small() -> None:
    with Image.open(IMAGES / "page.png") as image:
        assert image.width >= 1000
    assert (IMAGES / "page.png").stat().st_size < 400_000

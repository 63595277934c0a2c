"""The pictures of the documentation are what their programs draw."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ET

from PIL import Image

from tests.support.repository import ROOT

IMAGES = ROOT / "docs" / "images"


def test_architecture_is_drawn_anew_when_its_program_changes() -> None:
    drawn = runpy.run_path(str(IMAGES / "draw_architecture.py"))["drawing"]()
    kept = (IMAGES / "architecture.svg").read_text(encoding="utf-8")
    assert drawn == kept, "python docs/images/draw_architecture.py"
    assert ET.fromstring(kept).tag.endswith("svg")


def test_boxes_of_the_architecture_lie_inside_it_and_apart() -> None:
    root = ET.parse(IMAGES / "architecture.svg").getroot()
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    rooms = [each.attrib for each in root.iter() if each.get("rx") == "8"]
    places = [tuple(float(room[key]) for key in ("x", "y", "width", "height")) for room in rooms]
    assert len(places) == 14
    for number, (x, y, w, h) in enumerate(places):
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
        for other_x, other_y, other_w, other_h in places[:number]:
            apart_sideways = x >= other_x + other_w or other_x >= x + w
            assert apart_sideways or y >= other_y + other_h or other_y >= y + h


def test_page_is_a_picture_that_loads_fast() -> None:
    with Image.open(IMAGES / "page.png") as picture:
        assert picture.width >= 1000
    assert (IMAGES / "page.png").stat().st_size < 400_000

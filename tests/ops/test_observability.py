"""docs/observability.md documents every metric, and only existing ones."""

from __future__ import annotations

import re

import pytest

from service.observability.metrics import STAGES
from tests.ops.exported import Family, exported_families
from tests.support.repository import ROOT

TEXT = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
# name | labels, or a dash | meaning
ROW = re.compile(r"^\| `((?:lite_detr|python)_[a-z0-9_]+)` \| (.+?) \| .{10,} \|$", re.MULTILINE)
DOCUMENTED = {name: frozenset(re.findall(r"`(\w+)`", labels)) for name, labels in ROW.findall(TEXT)}


@pytest.mark.parametrize("family", exported_families(), ids=lambda family: family.name)
def test_every_metric_is_documented_with_its_labels(family: Family) -> None:
    assert family.name in DOCUMENTED, f"docs/observability.md does not document {family.name}"
    assert DOCUMENTED[family.name] == family.labels


def test_every_documented_metric_exists() -> None:
    assert DOCUMENTED.keys() <= {family.name for family in exported_families()}


def test_every_stage_is_documented() -> None:
    assert [stage for stage in STAGES if f"| `{stage}` |" not in TEXT] == []

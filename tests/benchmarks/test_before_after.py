from __future__ import annotations

import pytest

from benchmarks.before_after import ALONE, CPU, Figure, compare, values_of

LATENCY = Figure("latency", lambda document: document["latency"])
THROUGHPUT = Figure("throughput", lambda document: document["throughput"], more_is_better=True)


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    found = compare(LATENCY, before=[1.0, 10.0, 2.0], after=[1.1, 9.0, 2.1], limit=0.02)

    assert found.ratio == pytest.approx(1.05)
    assert (found.least_ratio, found.largest_ratio) == pytest.approx((0.9, 1.1))


@pytest.mark.parametrize(
    ("figure", "after", "worse"),
    [
        (LATENCY, 101.0, False),
        (LATENCY, 103.0, True),
        (LATENCY, 90.0, False),
        (THROUGHPUT, 99.0, False),
        (THROUGHPUT, 97.0, True),
        (THROUGHPUT, 110.0, False),
    ],
)
def test_worse_depends_on_the_direction_of_the_figure(
    figure: Figure, after: float, worse: bool
) -> None:
    assert compare(figure, [100.0], [after], limit=0.02).worse is worse


def test_figures_of_parts_that_were_skipped_are_left_out() -> None:
    edge = {
        "added_p50_ms": 1.0,
        "added_seldom_p50_ms": 2.0,
        "single_p50_ms": 3.0,
        "cpu_ratio": 0.8,
        "throughput": 300.0,
    }
    document = {
        "edge": {"rounds": [edge], "edge_peak_mib": 130.0, "ready_seconds": 1.5},
        "default_model": None,
    }

    names = values_of(ALONE, document)

    assert set(names) == {figure.name for figure in ALONE if figure.name.startswith("edge")}


def test_network_figures_are_those_of_the_default_model() -> None:
    rows = [
        {"model": model, "side": side, "wall_ms": wall, "cpu_ms": 2 * wall}
        for model, wall in (("r50", 900.0), ("default", 40.0))
        for side in ("plain", "fp32", "bf16")
    ]

    assert set(values_of(CPU, {"rows": rows}).values()) == {40.0, 80.0}

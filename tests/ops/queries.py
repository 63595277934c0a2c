"""Every PromQL query of the rules and the dashboard, and the metrics that they name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.repository import ROOT

RULES = ROOT / "docker" / "prometheus"
DASHBOARD = ROOT / "docker" / "grafana" / "dashboards" / "lite-detr.json"
# Grafana fills these in before it asks Prometheus.
_VARIABLES = {"$__rate_interval": "5m", "$instance": ".*"}


def load_yaml(name: str) -> Any:
    """The content of a YAML file of the repository."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install pyyaml")
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def rules_of(name: str) -> list[dict[str, Any]]:
    """The rules of one file, its groups flattened."""
    document = load_yaml(f"docker/prometheus/{name}")
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """The Grafana dashboard."""
    content: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return content


def panel_queries() -> list[tuple[str, str]]:
    """Title of the panel and query, of each target; variables filled in."""
    pairs = []
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"]
            for variable, value in _VARIABLES.items():
                query = query.replace(variable, value)
            pairs.append((panel["title"], query))
    return pairs


def metrics_of(query: str) -> set[str]:
    """The metric names that a query selects.

    Raises:
        ValueError: for a query that is not PromQL.
    """
    parser = pytest.importorskip(
        "promql_parser", reason="promql-parser is not installed: pip install promql-parser"
    )
    return set(_selected(parser, parser.parse(query)))


def _selected(parser: Any, node: Any) -> Iterator[str]:
    match node:
        case parser.VectorSelector():
            yield node.name
        case parser.MatrixSelector():
            yield from _selected(parser, node.vector_selector)
        case parser.BinaryExpr():
            yield from _selected(parser, node.lhs)
            yield from _selected(parser, node.rhs)
        case parser.Call():
            for argument in node.args:
                yield from _selected(parser, argument)
        case parser.AggregateExpr() | parser.ParenExpr() | parser.UnaryExpr():
            yield from _selected(parser, node.expr)
        case parser.SubqueryExpr():
            yield from _selected(parser, node.expr)
        case parser.NumberLiteral() | parser.StringLiteral():
            return
        case _:
            raise AssertionError(f"a kind of PromQL node that this test does not know: {node!r}")

"""The PromQL queries of the rules and the dashboard, and the metrics that they select."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import promql_parser
import yaml

from tests.support.repository import ROOT

RULES = ROOT / "docker" / "prometheus"
DASHBOARD = ROOT / "docker" / "grafana" / "dashboards" / "lite-detr.json"
# Replaced by Grafana before a query.
_VARIABLES = {"$__rate_interval": "5m", "$instance": ".*"}


def load_yaml(name: str) -> Any:
    """The content of a YAML file of the repository."""
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def rules_of(name: str) -> list[dict[str, Any]]:
    """The rules of all groups of a file."""
    document = load_yaml(f"docker/prometheus/{name}")
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """The Grafana dashboard."""
    content: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return content


def panel_queries() -> list[tuple[str, str]]:
    """The panel title and query of each target, with variables replaced."""
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
        ValueError: if the query is not valid PromQL.
    """
    return set(_selected(promql_parser.parse(query)))


def _selected(node: Any) -> Iterator[str]:
    match node:
        case promql_parser.VectorSelector():
            if node.name is not None:
                yield node.name
        case promql_parser.MatrixSelector():
            yield from _selected(node.vector_selector)
        case promql_parser.BinaryExpr():
            yield from _selected(node.lhs)
            yield from _selected(node.rhs)
        case promql_parser.Call():
            for argument in node.args:
                yield from _selected(argument)
        case promql_parser.AggregateExpr() | promql_parser.ParenExpr() | promql_parser.UnaryExpr():
            yield from _selected(node.expr)
        case promql_parser.SubqueryExpr():
            yield from _selected(node.expr)
        case promql_parser.NumberLiteral() | promql_parser.StringLiteral():
            return
        case _:
            raise AssertionError(f"unknown kind of PromQL node: {node!r}")

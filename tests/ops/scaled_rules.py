"""The rules with shorter windows, so that tests can wait for alerts.

Windows and waiting times are divided by a number; names, thresholds, labels and expressions stay
the same.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.ops.queries import load_yaml

RULE_FILES = ("recording.rules.yml", "alerts.rules.yml")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_WINDOW = re.compile(r"\[(\d+[smhd])\]")


def scaled(duration: str, divisor: int) -> str:
    """Divides a Prometheus duration of one unit: scaled("5m", 60) is "5000ms"."""
    milliseconds = int(duration[:-1]) * _SECONDS[duration[-1]] * 1000 // divisor
    return f"{milliseconds}ms"


def scaled_rules(name: str, divisor: int) -> str:
    """A rule file with divided windows and waiting times, evaluated every second."""
    document: dict[str, Any] = load_yaml(f"docker/prometheus/{name}")
    for group in document["groups"]:
        group["interval"] = "1s"
        for rule in group["rules"]:
            rule["expr"] = _WINDOW.sub(lambda match: f"[{scaled(match[1], divisor)}]", rule["expr"])
            if "for" in rule:
                rule["for"] = scaled(rule["for"], divisor)
    return str(yaml.safe_dump(document, sort_keys=False, width=1000))

"""What the service exports to Prometheus, asked of a running one with the fake engine."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cache

from service.settings import Settings
from service.wiring import open_detector

_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}


@dataclass(frozen=True)
class Family:
    """One metric as the exposition declares it."""

    name: str
    kind: str
    help_text: str

    @property
    def series(self) -> tuple[str, ...]:
        return tuple(self.name + suffix for suffix in _SUFFIXES.get(self.kind, ("",)))


@cache
def exported_families() -> tuple[Family, ...]:
    """Every family of a service that is up, in the order of its /metrics."""
    return tuple(_parse(asyncio.run(_render())))


def exported_series() -> frozenset[str]:
    """The names that a query may ask for."""
    return frozenset(name for family in exported_families() for name in family.series)


async def _render() -> str:
    settings = Settings(engine="fake", slots=2, decode_threads=1)
    async with open_detector(settings) as detector:
        body, _ = detector.metrics.render()
    return body.decode()


def _parse(text: str) -> list[Family]:
    helps: dict[str, str] = {}
    families: list[Family] = []
    for line in text.splitlines():
        match line.split(" ", 3):
            case ["#", "HELP", name, help_text]:
                helps[name] = help_text
            case ["#", "TYPE", name, kind]:
                families.append(Family(name, kind, helps[name]))
            case _:
                pass
    return families

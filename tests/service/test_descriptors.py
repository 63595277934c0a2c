"""The limit of open files follows the settings."""

from __future__ import annotations

import resource

import pytest

from service.descriptors import allow_descriptors
from service.settings import Settings


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (1024, 1 << 20, 2 * 5000 + 256 + 8 + 16),  # raised to what is needed
        (1 << 19, 1 << 20, 1 << 19),  # never lowered
        (1024, 4096, 4096),  # to the hard limit
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, resource.RLIM_INFINITY),
    ],
)
def test_the_limit_covers_all_connections(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, expected: int
) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _kind, limits: set_to.append(limits))
    assert allow_descriptors(Settings(max_connections=5000), decoders=2) == expected
    assert set_to == ([] if expected == soft else [(expected, hard)])

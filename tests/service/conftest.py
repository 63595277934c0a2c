"""Fixtures of the service's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.small_weights import write_small


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a small network."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    write_small(path)
    return path


@pytest.fixture(autouse=True)
def _memory_without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings do not depend on the memory of the machine that runs the tests."""
    monkeypatch.setattr("service.settings.loading.memory_limit_bytes", lambda: None)


@pytest.fixture
def threads_as_before() -> Iterator[None]:
    """Restores the number of torch threads, which loading a model sets."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)

"""Fixtures of the deformable-attention tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
import torch

from model.ops import cpu, operators
from tests.model.ops.attention_cases import Implementation
from tests.model.ops.warp_host import HostWarp


@pytest.fixture
def compiled() -> Implementation:
    """The compiled operators; a machine with a compiler must be able to build them."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler here, so there are no compiled kernels to test")
    assert cpu.available()
    return operators


@pytest.fixture(params=[1, 3])
def one_and_three_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs a test with one torch thread, and with three."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def warp(tmp_path_factory: pytest.TempPathFactory) -> HostWarp:
    """The GPU's arithmetic compiled for this processor."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # all workers of a test run share the libraries
        base = base.parent
    directory = base / "warp"
    directory.mkdir(exist_ok=True)
    return HostWarp(directory)

"""Default numbers of slots and decoders."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.build import open_core
from service.core.sizing import default_decoders, default_engine_threads, default_slots
from tests.support.fake_serve import fake_backend
from tests.support.fake_service import fake_settings, value

COUNT = st.integers(1, 64)


@given(COUNT, COUNT, COUNT)
def test_the_slots_suffice_for_a_running_a_staged_and_a_forming_batch_of_each_engine(
    engines: int, batch_size: int, decoders: int
) -> None:
    slots = default_slots(engines, batch_size, decoders)
    assert 64 <= slots <= 4096
    assert slots >= min(4096, 3 * engines * batch_size + decoders)
    assert slots <= max(64, 3 * engines * batch_size + decoders)


@given(COUNT, COUNT)
def test_threads_and_decoders_stay_within_the_cpus(engines: int, cpus: int) -> None:
    assert 1 <= default_decoders(engines, cpus) <= cpus
    assert default_decoders(engines, cpus) >= min(cpus, 2 * engines)
    threads = default_engine_threads(engines, cpus)
    assert threads * engines <= max(cpus, engines)


@pytest.mark.parametrize(
    ("settings", "slots"),
    [
        ({"decode_threads": 2}, 64),
        ({"decode_threads": 2, "devices": "cpu,cpu", "max_batch_size": 32}, 2 * 32 * 3 + 2),
        ({"devices": "cpu,cpu", "max_batch_size": 32, "slots": 5}, 5),
    ],
)
async def test_the_gauge_of_slots_has_the_default(settings: dict[str, object], slots: int) -> None:
    given_settings = fake_settings(max_batch_pixels=10**9, **settings)
    async with open_core(given_settings, fake_backend(given_settings)) as core:
        assert value(core.detector, "slots") == slots

"""All layers of an encoder in one call give what they give one after the other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model import ModelConfig
from model.network import onednn
from model.network.encoder import InterleavedEncoder
from model.network.geometry import Geometry, make_geometry
from model.network.inference import prepare_for_inference
from model.ops import cpu
from tests.model.network.test_detector import seeded, tiny

pytestmark = [
    pytest.mark.usefixtures("three_threads"),
    pytest.mark.skipif(
        not onednn.is_available(torch.device("cpu"), torch.float32) or not cpu.available(),
        reason="needs the compiled kernels",
    ),
]


@dataclass(frozen=True)
class Call:
    """An encoder in its inference form, and what it gets."""

    encoder: InterleavedEncoder
    tokens: Tensor
    geometry: Geometry

    @classmethod
    def random(cls, config: ModelConfig, batch: int = 1, sides: tuple[int, int] = (12, 16)) -> Call:
        """Images that fill parts of the padded maps; `sides`: (H, W) of the finest level."""
        generator = torch.Generator().manual_seed(batch)
        levels = config.num_feature_levels
        mask = torch.zeros(batch, 8 * sides[0], 8 * sides[1], dtype=torch.bool)
        for image in range(1, batch):
            mask[image, 8 * sides[0] - 10 * image :] = True
            mask[image, :, 8 * sides[1] - 9 * image :] = True
        shapes = tuple(tuple(max(1, side >> level) for side in sides) for level in range(levels))
        tokens = torch.randn(
            (batch, sum(h * w for h, w in shapes), config.d_model), generator=generator
        )
        embedding = torch.randn((levels, config.d_model), generator=generator)
        with torch.inference_mode():
            geometry = make_geometry(mask, shapes, embedding)  # type: ignore[arg-type]
        encoder = prepare_for_inference(seeded(config)).transformer.encoder
        assert encoder.stack is not None
        return cls(encoder, tokens, geometry)

    def run(self) -> Tensor:
        """In one call."""
        with torch.inference_mode():
            memory = self.encoder(self.tokens.clone(), self.geometry)
            assert isinstance(memory, Tensor)
            return memory

    def one(self, image: int) -> Tensor:
        """The memory of one image of the batch, without the others."""
        of_images = ("position", "padding", "reference_points")
        parts = {name: getattr(self.geometry, name)[image : image + 1] for name in of_images}
        tokens = self.tokens[image : image + 1]
        return Call(self.encoder, tokens, replace(self.geometry, **parts)).run()[0]

    def check(self) -> None:
        """Asserts that the memory is the same but for rounding."""
        found = self.run()
        with self.encoder.layer_by_layer():
            torch.testing.assert_close(found, self.run(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"key_aware": False},
        {"interleaved": False},
        {"encoder_layers": 4, "encoder_blocks": 2},
        {"high_level_scales": 1},
        {"same_loc": True},
        {"num_heads": 4},
        {"num_heads": 1, "d_model": 64},
        {"encoder_points": 3, "num_feature_levels": 3, "high_level_scales": 2},
        {"encoder_feedforward": 33},
    ],
    ids=str,
)
def test_the_memory_is_that_of_the_layers(changes: dict[str, Any]) -> None:
    Call.random(tiny(**changes), batch=2).check()


@pytest.mark.parametrize("sides", [(1, 1), (3, 50), (40, 37)])
def test_maps_of_any_size(sides: tuple[int, int]) -> None:
    Call.random(tiny(), sides=sides).check()


def test_tokens_without_padding() -> None:
    call = Call.random(tiny())
    Call(call.encoder, call.tokens, replace(call.geometry, padding=None)).check()


def test_an_image_has_the_same_memory_to_the_bit_in_a_batch_and_on_any_number_of_threads() -> None:
    call = Call.random(tiny(), batch=4)
    together = call.run()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        assert torch.equal(call.run(), together)
    for image in range(4):
        assert torch.equal(call.one(image), together[image])


def test_nan_stays_with_its_image() -> None:
    call = Call.random(tiny(), batch=2)
    before = call.run()
    call.tokens[1] = float("nan")
    after = call.run()
    assert torch.equal(after[0], before[0])
    assert after[1].isnan().all()


def test_padding_is_not_sampled() -> None:
    call = Call.random(tiny(), batch=2)
    padding = call.geometry.padding
    assert padding is not None
    before = call.run()
    call.tokens[padding] = 1e30
    assert torch.equal(call.run()[~padding], before[~padding])


def test_calls_at_the_same_time_do_not_share_memory() -> None:
    calls = [Call.random(tiny(), sides=(9 + 4 * n, 12)) for n in range(3)]
    expected = [call.run() for call in calls]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            assert all(map(torch.equal, pool.map(Call.run, calls), expected))


def test_an_empty_batch_has_an_empty_memory() -> None:
    call = Call.random(tiny())
    parts = {n: getattr(call.geometry, n)[:0] for n in ("position", "padding", "reference_points")}
    empty = Call(call.encoder, call.tokens[:0], replace(call.geometry, **parts)).run()
    assert empty.shape == (0, *call.tokens.shape[1:])


def test_keys_of_their_own_run_layer_by_layer() -> None:
    network = prepare_for_inference(seeded(tiny(separate_keys=True)))
    assert network.transformer.encoder.stack is None


def test_without_compiled_kernels_layers_run_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "available", lambda: False)
    assert prepare_for_inference(seeded(tiny())).transformer.encoder.stack is None


def test_other_precisions_run_layer_by_layer() -> None:
    network = prepare_for_inference(seeded(tiny()), torch.bfloat16)
    assert network.transformer.encoder.stack is None

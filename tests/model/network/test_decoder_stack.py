"""All layers of a decoder in one call give what they give one after the other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model import ModelConfig
from model.network import onednn
from model.network.decoder import Decoder
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
    """A decoder in its inference form, and what it gets."""

    decoder: Decoder
    content: Tensor
    reference_logits: Tensor
    memory: Tensor
    geometry: Geometry

    @classmethod
    def random(cls, config: ModelConfig, batch: int = 1, queries: int = 12) -> Call:
        """Images that fill parts of the padded maps."""
        generator = torch.Generator().manual_seed(batch + queries)
        levels = config.num_feature_levels
        mask = torch.zeros(batch, 96, 128, dtype=torch.bool)
        for image in range(batch):
            mask[image, 96 - 20 * image :] = True
            mask[image, :, 128 - 9 * image :] = True
        shapes = tuple((max(1, 12 >> level), max(1, 16 >> level)) for level in range(levels))
        tokens = sum(height * width for height, width in shapes)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        network = prepare_for_inference(seeded(config))
        with torch.inference_mode():
            geometry = make_geometry(mask, shapes, draw(levels, config.d_model))
        decoder = network.transformer.decoder
        assert decoder.stack is not None
        content = draw(queries, config.d_model).expand(batch, -1, -1)
        memory = draw(batch, tokens, config.d_model)
        return cls(decoder, content, 2 * draw(batch, queries, 4), memory, geometry)

    def run(self) -> tuple[Tensor, Tensor]:
        """Logits and boxes, in one call."""
        with torch.inference_mode():
            found = self.decoder.predict(
                self.content, self.reference_logits, self.memory, self.geometry
            )
            assert all(isinstance(each, Tensor) for each in found)
            return found

    def one(self, image: int) -> tuple[Tensor, Tensor]:
        """The results of one image of the batch, without the others."""
        logits, boxes = self.keep(slice(image, image + 1)).run()
        return logits[0], boxes[0]

    def keep(self, images: slice) -> Call:
        """The call for some images of the batch."""
        of_images = ("padding", "query_ratios", "box_ratios")
        parts = {name: getattr(self.geometry, name)[images] for name in of_images}
        return Call(
            self.decoder,
            self.content[images],
            self.reference_logits[images],
            self.memory[images],
            replace(self.geometry, **parts),
        )

    def check(self) -> None:
        """Asserts that the results are those of the layers but for rounding."""
        found = self.run()
        with self.decoder.layer_by_layer():
            expected = self.run()
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"key_aware": False},
        {"num_heads": 4},
        {"num_heads": 1, "d_model": 64},
        {"decoder_layers": 1},
        {"decoder_points": 3, "num_feature_levels": 3, "high_level_scales": 2},
        {"decoder_feedforward": 33},
        {"decoder_norm": False},
        {"num_classes": 1},
        {"num_classes": 91},
        {"shared_heads": False},
    ],
    ids=str,
)
def test_queries_and_boxes_are_those_of_the_layers(changes: dict[str, Any]) -> None:
    Call.random(tiny(**changes), batch=2).check()


@pytest.mark.parametrize("queries", [1, 8, 17, 100, 300])
def test_any_number_of_queries(queries: int) -> None:
    Call.random(tiny(), batch=3, queries=queries).check()


def test_an_image_has_the_same_results_to_the_bit_in_a_batch_and_on_any_number_of_threads() -> None:
    call = Call.random(tiny(), batch=4, queries=50)
    together = call.run()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, call.run(), together))
    for image in range(4):
        assert all(map(torch.equal, call.one(image), (each[image] for each in together)))


def test_nan_stays_with_its_image() -> None:
    call = Call.random(tiny(), batch=2)
    before, _ = call.run()
    call.memory[1] = float("nan")
    after, _ = call.run()
    assert torch.equal(after[0], before[0])
    assert after[1].isnan().all()


def test_padding_of_the_memory_is_not_sampled() -> None:
    call = Call.random(tiny(), batch=2)
    padding = call.geometry.padding
    assert padding is not None
    before = call.run()
    call.memory[padding] = 1e30
    assert all(map(torch.equal, call.run(), before))


def test_a_memory_without_padding() -> None:
    call = Call.random(tiny())
    replace(call, geometry=replace(call.geometry, padding=None)).check()


def test_calls_at_the_same_time_do_not_share_memory() -> None:
    calls = [Call.random(tiny(), queries=20 + 8 * n) for n in range(3)]
    expected = [call.run()[0] for call in calls]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            found = pool.map(lambda call: call.run()[0], calls)
            assert all(map(torch.equal, found, expected))


def test_an_empty_batch_has_empty_results() -> None:
    call = Call.random(tiny())
    empty = call.keep(slice(0))
    logits, boxes = empty.run()
    assert (logits.shape, boxes.shape) == ((0, 12, tiny().num_classes), (0, 12, 4))


def test_a_decoder_with_fixed_positions_runs_layer_by_layer() -> None:
    network = prepare_for_inference(seeded(tiny(refined_positions=False)))
    assert network.transformer.decoder.stack is None


def test_a_decoder_of_many_queries_runs_layer_by_layer() -> None:
    assert prepare_for_inference(seeded(tiny(num_queries=301))).transformer.decoder.stack is None


def test_without_compiled_kernels_layers_run_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "available", lambda: False)
    assert prepare_for_inference(seeded(tiny())).transformer.decoder.stack is None


def test_other_precisions_run_layer_by_layer() -> None:
    network = prepare_for_inference(seeded(tiny()), torch.bfloat16)
    assert network.transformer.decoder.stack is None

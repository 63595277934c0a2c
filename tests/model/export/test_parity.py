"""The comparison of an exported network with the plain one: what passes and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from model.export.network import ExportedNetwork
from model.export.parity import Parity, ParityError, check_parity
from model.network.detector import LiteDETR
from model.ops import computed_by
from tests.model.network.test_detector import seeded, tiny

SIZE = (64, 96)
Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class FakeFile:
    """The plain network in place of an exported one, with a change of its results.

    Args:
        detector: the plain network.
        change: of logits and boxes.
        order: of the tokens that it selects, given the plain selection.
    """

    runtime = "fake 1.0"

    def __init__(
        self,
        detector: LiteDETR,
        change: Change = lambda logits, boxes: (logits, boxes),
        order: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._detector, self._change, self._order = detector, change, order

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return self._change(*self._results(inputs)[:2])

    def selected(self, inputs: Sequence[Tensor]) -> Tensor:
        return self._results(inputs)[2]

    def _results(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        transformer, rows = self._detector.transformer, []
        select = transformer.select_queries

        def reorder(best: Tensor) -> Tensor:
            rows.append(select(best) if self._order is None else self._order(select(best)))
            return rows[-1]

        transformer.select_queries = reorder  # type: ignore[method-assign]
        mask = torch.zeros(len(inputs[0]), *SIZE, dtype=torch.bool)
        with torch.inference_mode():
            output = self._detector(inputs[0], mask)
        del transformer.select_queries
        return output.pred_logits, output.pred_boxes, rows[0]


@pytest.fixture(scope="module")
def detector() -> LiteDETR:
    return seeded(tiny())


@pytest.fixture(scope="module")
def tied() -> LiteDETR:
    """A network to which all tokens look alike: every order of selected tokens is right."""
    network = seeded(tiny())
    torch.nn.init.zeros_(network.transformer.enc_out_class_embed.weight)
    return network


def batches(*sizes: int) -> list[tuple[Tensor]]:
    torch.manual_seed(0)
    return [(torch.randn(size, 3, *SIZE),) for size in sizes]


def test_equal_results_pass_with_their_differences(detector: LiteDETR) -> None:
    nearly = FakeFile(detector, lambda logits, boxes: (logits + 2e-4, boxes - 1e-4))
    parity = check_parity(nearly, detector, batches(1, 2))
    assert parity.logits == pytest.approx(2e-4, rel=0.1)
    assert parity.boxes == pytest.approx(1e-4, rel=0.1)
    assert (parity.runtime, parity.batch_sizes, parity.swapped) == ("fake 1.0", (1, 2), 0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda logits, boxes: (logits + 0.002, boxes),
            r"batch of 1, logits differ by up to 0\.00",
        ),
        (lambda logits, boxes: (logits, boxes * 1.1), "boxes differ by up to"),
        (lambda logits, boxes: (logits * float("nan"), boxes), "logits differ by up to inf"),
        (lambda logits, boxes: (logits, boxes[:, :3]), "boxes differ by up to inf"),
        (lambda logits, boxes: (logits.flip(1), boxes.flip(1)), "logits differ by up to"),
    ],
)
def test_other_results_are_refused(detector: LiteDETR, change: Change, problem: str) -> None:
    with pytest.raises(ParityError, match=problem):
        check_parity(FakeFile(detector, change), detector, batches(1))


def test_a_difference_in_a_larger_batch_only_is_found(detector: LiteDETR) -> None:
    def second_image(logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits.clone()
        logits[1:] += 0.01
        return logits, boxes

    with pytest.raises(ParityError, match="in a batch of 3"):
        check_parity(FakeFile(detector, second_image), detector, batches(1, 3))


def test_swapped_ranks_of_equal_scores_pass_and_are_counted(tied: LiteDETR) -> None:
    swapped = FakeFile(tied, order=lambda rows: rows.flip(1))
    parity = check_parity(swapped, tied, batches(2))
    assert isinstance(parity, Parity)
    assert parity.swapped == 24
    assert parity.logits < 1e-4


def test_swapped_ranks_with_other_results_are_refused(tied: LiteDETR) -> None:
    wrong = FakeFile(tied, lambda logits, boxes: (logits + 0.01, boxes), lambda rows: rows.flip(1))
    with pytest.raises(ParityError, match=r"logits differ by up to 0\.01"):
        check_parity(wrong, tied, batches(2))


def test_tokens_with_other_scores_are_refused(detector: LiteDETR) -> None:
    reordered = FakeFile(detector, order=lambda rows: rows.flip(1))
    with pytest.raises(ParityError, match="scores at the same rank differ by up to"):
        check_parity(reordered, detector, batches(1))


def test_a_token_that_is_selected_twice_is_refused(tied: LiteDETR) -> None:
    repeated = FakeFile(tied, order=lambda rows: rows[:, :1].expand_as(rows))
    with pytest.raises(ParityError, match="not one of tokens"):
        check_parity(repeated, tied, batches(1))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("changes", [{}, {"key_aware": False}, {"separate_keys": True}])
def test_the_network_that_is_exported_gives_the_plain_results(
    changes: dict[str, object], padded: bool
) -> None:
    plain = seeded(tiny(**changes))
    network = ExportedNetwork(plain, SIZE, padded=padded)

    class Eager:
        runtime = "torch"

        def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            with torch.no_grad(), computed_by("gathers"):
                logits, boxes = network(*inputs)
            return logits, boxes

        def selected(self, inputs: Sequence[Tensor]) -> Tensor:
            raise AssertionError("the results are equal")

    inputs: list[tuple[Tensor, ...]] = [*batches(1, 3)]
    if padded:
        sizes = torch.tensor([[64, 96], [40, 50], [33, 96]])
        inputs = [(pixels, sizes[: len(pixels)]) for (pixels,) in inputs]
    assert check_parity(Eager(), plain, inputs).logits < 1e-4

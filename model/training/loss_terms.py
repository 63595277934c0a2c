"""The registry of loss terms: total, log, loss curve and command-line options follow from it.

A new term is one function in `model.training.losses` and one entry here. This module does not
import torch, because `lite-detr --help` reads it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LossTerm:
    """One summand of the total loss.

    Attributes:
        function: name of a function in `model.training.losses`: LossInputs -> scalar Tensor.
        help: what the term's weight, the option `<name>_weight`, applies to.
        weight: default of that option; 0: the term is off unless the option is given.
    """

    function: str
    help: str
    weight: float = 1.0


LOSS_TERMS = {
    "decoder": LossTerm("decoder_loss", "one-to-one loss of every decoder layer"),
    "proposals": LossTerm("proposal_loss", "one-to-one loss of the selected proposals"),
    "denoising": LossTerm("denoising_loss", "loss of the denoising queries in every decoder layer"),
    "dense": LossTerm("dense_loss", "one-to-many loss of every encoder token"),
    "duplicates": LossTerm(
        "duplicate_loss", "loss of second detections of an object in every decoder layer", 0.0
    ),
    "one_to_many": LossTerm("one_to_many_loss", "loss of H-DETR's one-to-many branch"),
}


def weight_option(name: str) -> str:
    """Returns the field of `TrainOptions` that holds a term's weight."""
    return f"{name}_weight"

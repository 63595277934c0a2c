"""What a run can say about its chances: too few iterations, classes that are never found."""

from __future__ import annotations

from collections.abc import Sequence

ITERATIONS_TO_LEARN = 150  # below this even a fine-tuned model finds little
_LATE = 0.5  # progress from which a class without a hit is worth a warning
_MANY_ITERATIONS = 300  # ... or this many iterations
_SHOWN = 6

NO_START = (
    "warning: this run starts from random weights and needs many thousands of iterations; start "
    "from trained ones with --init-from FILE, or with --pretrained-backbone"
)
FEW_BOXES = (
    "warning: these images have too few boxes to tell good weights from bad ones; validate on more "
    "images, or with a larger --holdout"
)


def too_short(iterations: int, seconds_per_iteration: float) -> str | None:
    """Returns a warning for a run that has time for too few iterations.

    Args:
        iterations: expected in the whole run.
        seconds_per_iteration: measured.
    """
    if iterations >= ITERATIONS_TO_LEARN:
        return None
    minutes = ITERATIONS_TO_LEARN * seconds_per_iteration / 60
    return (
        f"warning: this run ends after about {iterations} iterations, too few to learn much: "
        f"{ITERATIONS_TO_LEARN} take about {minutes:.0f} minutes here (--max-minutes, "
        "--max-iterations); smaller --input-side or --batch-size give more of them"
    )


def no_hit(names: Sequence[str], iteration: int, progress: float) -> str | None:
    """Returns a warning for classes of which no validation object is found, once it is late.

    Args:
        names: of these classes.
        iteration: optimizer steps done.
        progress: of the run, 0..1.
    """
    if not names or (progress < _LATE and iteration < _MANY_ITERATIONS):
        return None
    more = ", ..." if len(names) > _SHOWN else ""
    return (
        f"warning: after {iteration} iterations no object is found of: "
        f"{', '.join(names[:_SHOWN])}{more} (few or tiny boxes: check them with "
        "`lite-detr data check`; a longer run or a larger --input-side may help)"
    )

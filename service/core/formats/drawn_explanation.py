"""format=explain: the points that the attention of one detection samples, drawn as a figure."""

from __future__ import annotations

import io

from model.images.decode import Cost, open_upright
from service.core.formats.output_format import Encoded, EncodeInput, OutputFormat
from service.images.explanation import draw_explanation

# The figure always has the same size: about 0.3 s of one core, and layers of 36 MB.
_FIGURE_COST = Cost(memory_bytes=40 << 20, seconds=0.35)


def encode_explanation(job: EncodeInput) -> Encoded:
    """Draws the explanation of one file.

    Raises:
        InvalidImage, UnsupportedImage, ImageTooLarge: as `open_upright` does.
    """
    (file,), (image,) = job.files, job.images
    assert file.result is not None, "files with an error are not drawn"
    assert job.limits is not None, "images are decoded within limits"
    assert file.result.explanation is not None, "requests in this format name a detection"
    opened, _ = open_upright(image, job.limits)
    encoded = io.BytesIO()
    draw_explanation(opened, file.result.explanation).save(encoded, "PNG", compress_level=1)
    return Encoded(encoded.getvalue(), "image/png")


EXPLANATION = OutputFormat(
    name="explain",
    description="a figure of where the attention of one detection looks (one file only; needs "
    "`serve --explain`)",
    media_types=("image/png",),
    encode=encode_explanation,
    draws_images=True,
    drawing_cost=_FIGURE_COST,
    explains=True,
)

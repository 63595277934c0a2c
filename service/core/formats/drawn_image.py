"""format=image: the original image at its full size, with boxes and labels drawn on it."""

from __future__ import annotations

from service.core.formats.output_format import Encoded, EncodeInput, OutputFormat
from service.images.drawing import render_detections


def encode_image(job: EncodeInput) -> Encoded:
    """Draws the detections of one file.

    Raises:
        InvalidImage, UnsupportedImage, ImageTooLarge: as `render_detections` does.
    """
    (file,), (image,) = job.files, job.images
    assert file.result is not None, "files with an error are not drawn"
    assert job.limits is not None, "images are decoded within limits"
    result = file.result
    rendered = render_detections(image, result.detections, result.label_names, job.limits)
    return Encoded(rendered.data, rendered.media_type)


DRAWN_IMAGE = OutputFormat(
    name="image",
    description="the image with boxes drawn (one file only)",
    media_types=("image/jpeg", "image/png"),
    encode=encode_image,
    draws_images=True,
)

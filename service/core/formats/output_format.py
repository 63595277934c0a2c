"""What an output format consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from model.images.decode import Cost, ImageLimits
from service.core.encoding import FileResult

_ONLY_PIXELS = Cost(0, 0.0)


class Schema(BaseModel):
    """Base class of the models that describe JSON documents in OpenAPI."""

    model_config = ConfigDict(extra="forbid")


class Encoded(NamedTuple):
    """An encoded response body."""

    data: bytes
    media_type: str


@dataclass(frozen=True)
class CocoDataSet:
    """Image and category ids of a user's COCO data set, which the results will be compared with.

    Attributes:
        image_ids: one for each file.
        file_names: likewise, as the data set names them.
        categories: names by category id.
        category_by_class: category ids by the model's class id; other classes are left out.
    """

    image_ids: Sequence[int]
    file_names: Sequence[str]
    categories: Mapping[int, str]
    category_by_class: Mapping[int, int]


@dataclass(frozen=True)
class EncodeInput:
    """What an encoder gets.

    Attributes:
        files: one for each file, in the order of the files.
        label_names: of the model, for requests without any result.
        request_id: of the HTTP request; None for `lite-detr detect`.
        images: the encoded image files; only for formats with `draws_images`.
        limits: for decoding `images`.
        category_ids: of the model, for requests without any result; None if it has none.
        data_set: whose image and category ids the results get; None: those of the model and of
            the files.
        indent: whether people will read the document (a terminal).
    """

    files: Sequence[FileResult]
    label_names: Sequence[str] = ()
    request_id: str | None = None
    images: Sequence[bytes] = ()
    limits: ImageLimits | None = None
    category_ids: Sequence[int] | None = None
    data_set: CocoDataSet | None = None
    indent: bool = False


def encode_with_image(
    image: bytes, encode: Callable[[EncodeInput], Encoded], job: EncodeInput
) -> tuple[bytes, str]:
    """Encodes results together with their image; runs in a decoder process.

    Args:
        image: the encoded image file.
        encode: of a format with `draws_images`.
        job: without `images`.
    """
    return encode(replace(job, images=(image,)))


@dataclass(frozen=True)
class OutputFormat:
    """One value of the `format` option.

    Attributes:
        name: the option's value.
        description: for OpenAPI and `--help`.
        media_types: that the encoder may return.
        encode: turns the files of a request's files into a response body.
        schemas: the JSON documents that it writes; none for other media types.
        examples: of these documents, by title, for OpenAPI.
        draws_images: whether the encoder needs the image file itself. Then a request has one
            file, the encoder runs in a decoder process, and `lite-detr detect` does not print it.
        drawing_cost: of an encoder with `draws_images`, in addition to the image's pixels.
        explains: whether the encoder needs an `Explanation`, of the option `detection`.
    """

    name: str
    description: str
    media_types: tuple[str, ...]
    encode: Callable[[EncodeInput], Encoded]
    schemas: tuple[type[BaseModel], ...] = ()
    examples: Mapping[str, Any] = field(default_factory=dict)
    draws_images: bool = False
    drawing_cost: Cost = _ONLY_PIXELS
    explains: bool = False

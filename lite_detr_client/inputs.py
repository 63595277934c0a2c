"""Inputs of a call: images, options, and who is calling."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import sys
from collections.abc import AsyncIterable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

_Item = TypeVar("_Item")

# Modes of Pillow that PNG has. Each of the others is converted to one of these, or sent as TIFF.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_PNG_CONVERSIONS = {
    "La": "LA",
    "RGBa": "RGBA",
    "PA": "RGBA",
    "I;16B": "I",
    "I;16L": "I",
    "I;16N": "I",
}
_MAX_FILE_BYTES = 2 << 30  # of an image; gRPC messages cannot be larger
_UINT8_MAX = 255
_UINT16_MAX = 65535

# Visible ASCII, which headers and metadata can have. An ID may have spaces inside.
_API_KEY = re.compile(r"[\x21-\x7e]+")
_REQUEST_ID = re.compile(r"([\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?)?")
_PRIORITIES = ("high", "normal")


class BinaryFile(Protocol):
    """A file that is open for reading in binary mode."""

    def read(self) -> bytes:
        """Returns the rest of the file."""


class PillowImage(Protocol):
    """An image of Pillow."""

    @property
    def mode(self) -> str:
        """How its pixels are stored."""

    def save(self, fp: Any, format: str | None = None) -> None:
        """Writes an image file."""


ImageSource = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryFile | PillowImage


@dataclass(frozen=True)
class DetectOptions:
    """Which detections to return. None: the default of the model.

    Raises:
        TypeError: for a value of another type; the message says what is expected.
    """

    threshold: float | None = None  # 0..1; lowest score to return
    max_detections: int | None = None  # the ones with the best scores
    labels: tuple[str, ...] | None = None  # only detections of these classes
    tile: str | None = None  # "auto" or "640x480": cuts a large image into tiles of that size
    overlap: float | None = None  # 0..0.5; of neighbouring tiles, as a share of a tile

    def __post_init__(self) -> None:
        """Checks the types; `labels` may be any iterable of names except a single name."""
        if not isinstance(self.tile, str | None):
            raise TypeError(f"tile takes 'auto' or a size such as '640x480', not {self.tile!r}")
        for name in ("threshold", "max_detections", "overlap"):
            value = getattr(self, name)
            if isinstance(value, str | bytes | bool):
                raise TypeError(f"{name} takes a number, not {value!r}")
        labels: Any = self.labels
        if isinstance(labels, str | bytes):
            raise TypeError(f"labels takes a list of names, such as [{labels!r}]")
        if labels is not None:
            object.__setattr__(self, "labels", tuple(labels))


MODEL_DEFAULTS = DetectOptions()


def merge_options(
    options: DetectOptions,
    threshold: float | None,
    max_detections: int | None,
    labels: Iterable[str] | None,
) -> DetectOptions:
    """Returns the options with those that were given by keyword.

    Raises:
        TypeError: for a value of another type; the message says what is expected.
    """
    if not isinstance(options, DetectOptions):
        raise TypeError(
            f"options takes DetectOptions, not {options!r}; single options are passed by keyword, "
            "such as threshold=0.5"
        )
    if threshold is None and max_detections is None and labels is None:
        return options
    return replace(
        options,
        threshold=options.threshold if threshold is None else threshold,
        max_detections=options.max_detections if max_detections is None else max_detections,
        labels=options.labels if labels is None else labels,  # type: ignore[arg-type]  # made a tuple
    )


@dataclass(frozen=True)
class Caller:
    """API key and priority, sent with every call of a client.

    Raises:
        TypeError, ValueError: for values that cannot be sent; the message never has the value.
    """

    # If the service requires one; send it over TLS only. White space around it is removed, such as
    # the line break at the end of a file.
    api_key: str | None = field(default=None, repr=False)
    priority: Literal["high", "normal"] | None = None  # None: the default of the service

    def __post_init__(self) -> None:
        """Checks the values here, as errors of HTTP libraries show the headers that they refuse."""
        if self.api_key is not None:
            object.__setattr__(self, "api_key", _checked_key(self.api_key))
        priority: Any = self.priority
        if priority is not None and not isinstance(priority, str):
            raise TypeError("priority takes 'high' or 'normal'")
        if priority is not None:
            object.__setattr__(self, "priority", priority.strip().lower())
            if self.priority not in _PRIORITIES:
                raise ValueError("priority takes 'high' or 'normal'")

    def headers(self) -> dict[str, str]:
        """Returns the HTTP headers; gRPC sends the same with lower-case names."""
        headers = {}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        if self.priority is not None:
            headers["X-Request-Priority"] = self.priority
        return headers


def _checked_key(key: object) -> str:
    """Returns an API key without the white space around it."""
    if not isinstance(key, str):
        raise TypeError("api_key takes the key as text (str)")
    key = key.strip()
    if not _API_KEY.fullmatch(key):
        problem = "has a space, a control character or one outside ASCII" if key else "is empty"
        raise ValueError(f"api_key {problem}; it takes one key, or None")
    return key


def checked_request_id(request_id: str | None) -> str | None:
    """Returns the ID of a request if headers and metadata can have it.

    Raises:
        TypeError: if it is not text.
        ValueError: for control characters, characters outside ASCII, and white space around it.
    """
    if request_id is None:
        return None
    if not isinstance(request_id, str):
        raise TypeError(f"request_id takes text, not {_describe(request_id)}")
    if not _REQUEST_ID.fullmatch(request_id):
        raise ValueError(
            "request_id takes printable ASCII characters, without white space around them, not "
            f"{request_id!r:.100}"
        )
    return request_id


ANONYMOUS = Caller()


def read_image(image: ImageSource) -> bytes:
    """Returns the bytes of an image file.

    Args:
        image: the bytes; the path of the file; the file, open in binary mode (its rest is read); or
            an image of Pillow, whose pixels are sent as they are, without EXIF rotation.

    Raises:
        OSError: if the file cannot be read, is a pipe or a device, or has more than 2 GiB.
        TypeError, ValueError: for anything else; the message says what is expected.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str):
        _refuse_address(image)
    if isinstance(image, str | os.PathLike):
        return _read_path(Path(image))
    if _is_pillow(image):
        return _encode(image)
    if callable(getattr(image, "read", None)):
        content = image.read()  # type: ignore[union-attr]
        if not isinstance(content, bytes | bytearray | memoryview):
            raise TypeError("the file of an image must be open in binary mode: open(path, 'rb')")
        return bytes(content)
    if hasattr(image, "__array_interface__") or hasattr(image, "__array__"):
        return _array_bytes(image)
    raise TypeError(
        "an image is the bytes of an image file, a path, an open file or an image of Pillow, not "
        f"{_describe(image)}" + ("; use detect_batch" if isinstance(image, list | tuple) else "")
    )


def _read_path(path: Path) -> bytes:
    """Returns the content of a regular file; does not wait for a named pipe, nor open a device."""
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
        raise OSError(errno.EINVAL, "not a regular file; pass it opened in binary mode", str(path))
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > _MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"has more than {_MAX_FILE_BYTES} bytes", str(path))
        return file.read()


def several(images: Iterable[_Item], what: str) -> Iterable[_Item]:
    """Returns `images` if it is a collection of images, not a single one.

    Args:
        images: the collection.
        what: the method, for the message.

    Raises:
        TypeError: for a single image, and for what cannot be iterated.
    """
    single = isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Mapping)
    single = single or _is_pillow(images) or hasattr(images, "read")
    single = single or hasattr(images, "__array_interface__")
    if single or not isinstance(images, Iterable):
        hint = ""
        if isinstance(images, AsyncIterable):
            hint = "; AsyncGrpcClient.detect_stream takes asynchronous iterables"
        raise TypeError(f"{what} takes a list of images, not {_describe(images)}{hint}")
    return images


def _is_pillow(image: object) -> bool:
    module = sys.modules.get("PIL.Image")  # not imported: nobody can have such an image
    return module is not None and isinstance(image, module.Image)


def _encode(image: Any) -> bytes:
    """Encodes an image of Pillow without metadata such as EXIF, and without clipping its samples.

    Floats, and integers that do not fit 16 bits, become a TIFF, whose samples the service scales by
    its rule for such files. All others become a PNG; without loss, if PNG has their mode.
    """
    transparency = image.info.get("transparency")
    image = image.copy()
    image.info = {}  # before conversions, which fail on a transparency of another mode
    if image.mode not in _PNG_MODES and image.mode not in {"I", "F"}:
        image = image.convert(_PNG_CONVERSIONS.get(image.mode, "RGB"))
    elif _is_transparency(transparency, image.mode):
        image.info = {"transparency": transparency}
    if image.mode == "I":
        darkest, brightest = image.getextrema()
        if darkest >= 0 and brightest <= _UINT16_MAX:
            info, image = image.info, image.convert("I;16")
            image.info = info
    buffer = io.BytesIO()
    if image.mode in _PNG_MODES:
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.save(buffer, "TIFF")
    return buffer.getvalue()


def _is_transparency(value: object, mode: str) -> bool:
    """Whether the transparent colour of an image is one of its mode.

    It may be left from an image of another mode, from which the pixels were taken.
    """
    if mode == "P":
        return isinstance(value, bytes) or _is_sample(value, _UINT8_MAX)
    if mode == "RGB":
        return (
            isinstance(value, tuple | list)
            and len(value) == 3  # noqa: PLR2004
            and all(_is_sample(each, _UINT8_MAX) for each in value)
        )
    deep = mode in {"I", "I;16"}
    return mode in {"1", "L", "I", "I;16"} and _is_sample(
        value, _UINT16_MAX if deep else _UINT8_MAX
    )


def _is_sample(value: object, largest: int) -> bool:
    return isinstance(value, int) and 0 <= value <= largest


def _array_bytes(array: Any) -> bytes:
    """Returns the bytes of an encoded image in a one-dimensional array."""
    if getattr(array, "ndim", None) == 1 and str(getattr(array, "dtype", "")) == "uint8":
        return bytes(array)
    raise TypeError(
        "an array of pixels is not an image file: pass PIL.Image.fromarray(array), or encode it; "
        "OpenCV's arrays are BGR, so use cv2.imencode('.png', array)[1]"
    )


def _refuse_address(text: str) -> None:
    for scheme in ("http://", "https://", "data:"):
        if text.startswith(scheme):
            raise ValueError(
                f"an image is given by its bytes or its path, not by a {scheme} address: the "
                "client and the service download nothing"
            )


def _describe(value: object) -> str:
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"

"""Content types of request bodies and of the parts of forms.

Images are recognized by their content, so a type only has to leave open that they are images.
"""

from __future__ import annotations

FORM_TYPE = "multipart/form-data"
# Sent by clients whose user named no type: none, and that of `curl --data-binary`.
UNDECLARED_TYPES = frozenset({"", "application/x-www-form-urlencoded"})
# Subtypes, or whole types, that mean "any bytes" or name an image without `image/`.
_OPEN_SUBTYPES = frozenset(
    {
        "*",
        "binary",
        "blob",
        "data",
        "download",
        "file",
        "force-download",
        "octet-stream",
        "stream",
        "unknown",
        "avif",
        "bmp",
        "gif",
        "heic",
        "heif",
        "image",
        "jpeg",
        "jpg",
        "png",
        "tif",
        "tiff",
        "webp",
    }
)


def media_type_of(content_type: str) -> str:
    """The media type of a Content-Type header, in lower case and without parameters."""
    return content_type.partition(";")[0].strip().lower()


def may_be_image(media_type: str) -> bool:
    """Whether a body of this type is read as the bytes of one image."""
    if media_type in UNDECLARED_TYPES:
        return True
    kind, _, subtype = media_type.partition("/")
    return kind == "image" or (subtype or kind).removeprefix("x-") in _OPEN_SUBTYPES

"""The published weights: which file is which variant, and how it gets here (torch-free).

First step of a published model's way in: `download` leaves the official `.pth` in a folder;
`model.weights.conversion` converts it to our safetensors. A cut transfer resumes where it stopped:
bytes gather in a `.part` file, and the server is asked for the rest only if its file is still the
same one (If-Range with the ETag or date that is kept beside it).
"""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

from model.weights.download import DownloadError, PartialFile, disk_errors, locked_part

RELEASE_URL: Final = "https://github.com/IDEA-Research/Lite-DETR/releases/download/litedetr"
RELEASES: Final[dict[str, str]] = {
    "lite-dino-r50-h2l2-2p1x3": "r50_s2ex3_49.9.pth",
    "lite-dino-r50-h3l1-6p1x1": "r50_s3ex1_50.2.pth",
    "lite-dino-r50-h3l1-2p1x3": "r50_s3ex3_50.4.pth",
}
"""Variant -> its file under `RELEASE_URL`; the last number is its published COCO AP."""

Progress = Callable[[int, int | None], None]
"""Told after each piece: bytes that are here, and bytes in all (None where not known)."""

_PIECE_BYTES = 256 * 1024
_TIMEOUT_SECONDS = 30.0  # without a byte
_ATTEMPTS_WITHOUT_PROGRESS = 3
_PARTIAL, _NOT_FOUND, _RANGE_REFUSED = 206, 404, 416


@dataclass(frozen=True)
class Downloaded:
    """A release file that is here, whole."""

    path: Path
    url: str
    sha256: str  # 64 hex digits


class _Cut(Exception):
    """The transfer stopped early; what has come is kept."""


def release_url(name: str, base_url: str | None = None) -> str:
    """Where the release file of a variant is.

    Raises:
        DownloadError: where this variant has no release file.
    """
    if name not in RELEASES:
        raise DownloadError(name, f"has no release file; there is one for {', '.join(RELEASES)}")
    return f"{(base_url or RELEASE_URL).rstrip('/')}/{RELEASES[name]}"


def download(
    url: str, folder: Path, *, sha256: str | None = None, progress: Progress | None = None
) -> Downloaded:
    """Brings a file here, going on where an earlier attempt stopped.

    Args:
        url: an http or https address.
        folder: where the file goes, under its own name; made where absent.
        sha256: the file is refused where its SHA-256 is another one.
        progress: called as bytes arrive.

    Returns:
        The file, whole, and its SHA-256.

    Raises:
        DownloadError: where the server does not give it, the disk does not take it, another
            process is downloading it, or the checksum is wrong. Bytes that came stay for the
            next attempt, except where they are known to be wrong.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(url, "is no http or https address")
    target = folder / Path(urlsplit(url).path).name
    with disk_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
    with locked_part(target) as part:
        _transfer_all(url, part, progress or (lambda _here, _total: None))
        with disk_errors(part.path):
            digest = hashlib.file_digest(part.rewound(), "sha256").hexdigest()
            if sha256 is not None and digest != sha256.strip().lower():
                part.discard()
                raise DownloadError(url, f"has SHA-256 {digest}, not {sha256}: it was not kept")
            part.finish(target)
    return Downloaded(path=target, url=url, sha256=digest)


def _transfer_all(url: str, part: PartialFile, progress: Progress) -> None:
    """Asks again after a cut for as long as each attempt brings something."""
    fruitless, furthest = 0, part.size
    while True:
        try:
            _transfer(url, part, progress)
            return
        except _Cut as cut:
            fruitless = fruitless + 1 if part.size <= furthest else 0
            furthest = max(furthest, part.size)
            if fruitless == _ATTEMPTS_WITHOUT_PROGRESS:
                raise DownloadError(
                    url, f"{cut}; {part.size} bytes are kept: the same command goes on from there"
                ) from cut


def _transfer(url: str, part: PartialFile, progress: Progress) -> None:
    """One request: the whole file, or the rest where a trustworthy part of it is here."""
    with disk_errors(part.path):
        validator, here = part.validator, part.size
        if here and validator is None:
            part.restart(None)
            here = 0
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if here and validator:
        request.add_header("Range", f"bytes={here}-")
        request.add_header("If-Range", validator)
    response = _open(request, part)
    if response is None:
        progress(here, here)
        return
    with response:
        if response.status == _PARTIAL:
            total: int | None = _total_of_range(url, response, here, part)
        else:
            with disk_errors(part.path):
                part.restart(_validator_of(response))
            length = response.headers["Content-Length"] or ""
            total = int(length) if length.isdecimal() else None
        _receive(response, part, total, progress)


def _open(request: urllib.request.Request, part: PartialFile) -> http.client.HTTPResponse | None:
    """Sends the request; None where the server says that all is here already.

    A server that cannot be used becomes an error that says what to do.
    """
    url = request.full_url
    opener = urllib.request.build_opener(_SafeRedirects)
    try:
        response: http.client.HTTPResponse = opener.open(request, timeout=_TIMEOUT_SECONDS)
        return response
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == _RANGE_REFUSED:
            if error.headers["Content-Range"] == f"bytes */{part.size}":
                return None
            with disk_errors(part.path):
                part.restart(None)
            raise _Cut("the server refused to go on from here") from error
        if error.code == _NOT_FOUND:
            raise DownloadError(url, "there is no such file (404)") from error
        raise DownloadError(url, f"the server answered {error.code} {error.reason}") from error
    except (ConnectionError, http.client.HTTPException) as error:
        raise _Cut(f"the connection was lost ({type(error).__name__})") from error
    except OSError as error:  # URLError is one: no network, no name, no route, timed out
        reason = getattr(error, "reason", error)
        raise DownloadError(
            url,
            f"cannot be reached ({reason}). Without internet: download it elsewhere, copy it here, "
            "run `lite-detr weights convert FILE my.safetensors` and serve with "
            "`--model my.safetensors`",
        ) from error


def _receive(
    response: http.client.HTTPResponse, part: PartialFile, total: int | None, progress: Progress
) -> None:
    """Appends what comes until all is here."""
    here = part.size
    progress(here, total)
    while True:
        try:
            piece = response.read(_PIECE_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _Cut(f"the transfer stopped ({type(error).__name__})") from error
        if not piece:
            break
        with disk_errors(part.path):
            part.append(piece)
        here += len(piece)
        progress(here, total)
    if total is not None and here < total:
        raise _Cut(f"the transfer stopped after {here} of {total} bytes")


def _total_of_range(
    url: str, response: http.client.HTTPResponse, here: int, part: PartialFile
) -> int:
    """The whole file's size from `Content-Range: bytes here-last/total`."""
    text = response.headers["Content-Range"] or ""
    span, _, total = text.removeprefix("bytes ").partition("/")
    if span.partition("-")[0] != str(here) or not total.isdecimal():
        part.discard()
        raise DownloadError(url, f"the server sent another part of the file ({text!r})")
    return int(total)


def _validator_of(response: http.client.HTTPResponse) -> str | None:
    """What tells this version of the file from later ones; weak ETags do not count."""
    tag = response.headers["ETag"]
    if tag and not tag.startswith("W/"):
        return str(tag)
    modified = response.headers["Last-Modified"]
    return str(modified) if modified else None


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to anything else."""

    def redirect_request(  # noqa: PLR0913, PLR0917 - the library's signature
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Refuses a downgrade; otherwise as the standard library."""
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise DownloadError(req.full_url, "redirects away from https; refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)

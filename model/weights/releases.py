"""The published weights: the file of each variant, and its download (torch-free).

`download` saves the official `.pth`; `model.weights.conversion` converts it to safetensors. An
interrupted transfer resumes: bytes are kept in a `.part` file, and the rest is requested only if
the server's file is still the same (If-Range with its ETag or date).
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
H_DETR_URL: Final = "https://github.com/HDETR/H-Deformable-DETR/releases/download/v0.1"
_TWO_STAGE: Final = "deformable_detr_plus_iterative_bbox_refinement_plus_plus_two_stage_36eps.pth"
_HYBRID: Final = f"hybrid_branch_lambda1_group6_t1500_dp0_mqs_lft_{_TWO_STAGE}"
RELEASES: Final[dict[str, str]] = {
    "lite-dino-r50-h2l2-2p1x3": "r50_s2ex3_49.9.pth",
    "lite-dino-r50-h3l1-6p1x1": "r50_s3ex1_50.2.pth",
    "lite-dino-r50-h3l1-2p1x3": "r50_s3ex3_50.4.pth",
    "h-detr-r50": f"r50_{_HYBRID}",
    "h-detr-swint": f"swin_tiny_{_HYBRID}",
    "deformable-detr-r50-ffn2048": f"r50_{_TWO_STAGE}",
}
"""Variant -> its file under `RELEASE_URL`, or under the address in `_URLS`."""

_URLS: Final[dict[str, str]] = dict.fromkeys(
    ("h-detr-r50", "h-detr-swint", "deformable-detr-r50-ffn2048"), H_DETR_URL
)

Progress = Callable[[int, int | None], None]
"""Called after each chunk with the bytes received and the total (None if unknown)."""

_CHUNK_BYTES = 256 * 1024
_TIMEOUT_SECONDS = 30.0  # without a byte
_ATTEMPTS_WITHOUT_PROGRESS = 3
_PARTIAL, _NOT_FOUND, _RANGE_REFUSED = 206, 404, 416


@dataclass(frozen=True)
class Downloaded:
    """A complete release file."""

    path: Path
    url: str
    sha256: str  # 64 hex digits


class _Interrupted(Exception):
    """The transfer stopped early; the bytes received are kept."""


def release_url(name: str, base_url: str | None = None) -> str:
    """Returns the URL of a variant's release file.

    Raises:
        DownloadError: if this variant has no release file.
    """
    if name not in RELEASES:
        raise DownloadError(name, f"has no release file; there is one for {', '.join(RELEASES)}")
    base_url = base_url or _URLS.get(name, RELEASE_URL)
    return f"{base_url.rstrip('/')}/{RELEASES[name]}"


def download(
    url: str, folder: Path, *, sha256: str | None = None, progress: Progress | None = None
) -> Downloaded:
    """Downloads a file, resuming an earlier attempt.

    Args:
        url: an http or https address.
        folder: for the file, under its own name; created if missing.
        sha256: expected checksum; a file with another one is refused.
        progress: called as bytes arrive.

    Returns:
        The file and its SHA-256.

    Raises:
        DownloadError: if the server or the disk fails, another process is downloading the file,
            or the checksum is wrong. The bytes received are kept for the next attempt, unless
            they are known to be wrong.
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
    """Retries after an interruption as long as attempts make progress."""
    fruitless, furthest = 0, part.size
    while True:
        try:
            _transfer(url, part, progress)
            return
        except _Interrupted as interruption:
            fruitless = fruitless + 1 if part.size <= furthest else 0
            furthest = max(furthest, part.size)
            if fruitless == _ATTEMPTS_WITHOUT_PROGRESS:
                raise DownloadError(
                    url,
                    f"{interruption}; {part.size} bytes are kept: the same command resumes",
                ) from interruption


def _transfer(url: str, part: PartialFile, progress: Progress) -> None:
    """Makes one request: for the whole file, or for the rest of a usable part."""
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
    """Sends the request; returns None if the server reports that the part is complete.

    Raises:
        DownloadError: if the server cannot be used; the message says what to do.
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
            raise _Interrupted("the server refused to go on from here") from error
        if error.code == _NOT_FOUND:
            raise DownloadError(url, "there is no such file (404)") from error
        raise DownloadError(url, f"the server answered {error.code} {error.reason}") from error
    except (ConnectionError, http.client.HTTPException) as error:
        raise _Interrupted(f"the connection was lost ({type(error).__name__})") from error
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
    """Appends the response's bytes until the file is complete."""
    here = part.size
    progress(here, total)
    while True:
        try:
            chunk = response.read(_CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(f"the transfer stopped ({type(error).__name__})") from error
        if not chunk:
            break
        with disk_errors(part.path):
            part.append(chunk)
        here += len(chunk)
        progress(here, total)
    if total is not None and here < total:
        raise _Interrupted(f"the transfer stopped after {here} of {total} bytes")


def _total_of_range(
    url: str, response: http.client.HTTPResponse, here: int, part: PartialFile
) -> int:
    """Returns the file's size from `Content-Range: bytes here-last/total`."""
    text = response.headers["Content-Range"] or ""
    span, _, total = text.removeprefix("bytes ").partition("/")
    if span.partition("-")[0] != str(here) or not total.isdecimal():
        part.discard()
        raise DownloadError(url, f"the server sent another part of the file ({text!r})")
    return int(total)


def _validator_of(response: http.client.HTTPResponse) -> str | None:
    """Returns the ETag or date that identifies this version of the file, no weak ETag."""
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
        """Refuses a downgrade from https."""
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise DownloadError(req.full_url, "redirects away from https; refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)

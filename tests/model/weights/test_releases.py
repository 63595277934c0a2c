from __future__ import annotations

import errno
import fcntl
import hashlib
import random
import urllib.request
from http.client import HTTPMessage
from io import BytesIO
from pathlib import Path

import pytest

from model.weights.download import DownloadError, PartialFile
from model.weights.releases import RELEASES, Downloaded, _SafeRedirects, download, release_url
from tests.support.release_server import Release, serve

CONTENT = random.Random(0).randbytes(700_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "weights.pth"
PART = f"{NAME}.part"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def fetch(release: Release, folder: Path, sha256: str | None = SHA256) -> Downloaded:
    return download(f"{release.url}/{NAME}", folder, sha256=sha256)


def refusal(release: Release, folder: Path, sha256: str | None = SHA256) -> str:
    with pytest.raises(DownloadError) as caught:
        fetch(release, folder, sha256)
    return str(caught.value)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_downloaded_with_its_checksum(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    with serve(Release(CONTENT)) as release:
        url = f"{release.url}/{NAME}"
        folder = tmp_path / "made" / "for it"
        got = download(url, folder, progress=lambda here, total: seen.append((here, total)))
    assert got == Downloaded(path=folder / NAME, url=url, sha256=SHA256)
    assert got.path.read_bytes() == CONTENT
    assert names_in(folder) == {NAME}
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)


def test_an_interrupted_transfer_resumes(tmp_path: Path) -> None:
    with serve(Release(CONTENT, cuts=[300_000, 100_000])) as release:
        assert fetch(release, tmp_path).path.read_bytes() == CONTENT
    assert [header for _, header in release.requests] == [
        None,
        "bytes=300000-",
        "bytes=400000-",
    ]


def test_repeated_interruptions_end_the_download_and_the_bytes_are_kept(tmp_path: Path) -> None:
    with serve(Release(CONTENT, cuts=[300_000, 0, 0, 0])) as release:
        assert "300000 bytes are kept: the same command resumes" in refusal(release, tmp_path)
        assert (tmp_path / PART).stat().st_size == 300_000
        assert fetch(release, tmp_path).path.read_bytes() == CONTENT
    assert release.requests[-1][1] == "bytes=300000-"
    assert names_in(tmp_path) == {NAME}


def test_a_file_that_changed_meanwhile_is_downloaded_from_its_start(tmp_path: Path) -> None:
    with serve(Release(CONTENT, cuts=[300_000, 0, 0, 0])) as release:
        refusal(release, tmp_path)
        release.etag, release.content = '"v2"', CONTENT[::-1]
        got = fetch(release, tmp_path, sha256=None)
    assert release.requests[-1][1] == "bytes=300000-"
    assert got.path.read_bytes() == CONTENT[::-1]


def test_without_a_strong_validator_nothing_is_resumed(tmp_path: Path) -> None:
    with serve(Release(CONTENT, etag='W/"v1"', cuts=[300_000])) as release:
        assert fetch(release, tmp_path).path.read_bytes() == CONTENT
    assert [header for _, header in release.requests] == [None, None]


def test_a_server_that_ignores_ranges_sends_the_whole_file_again(tmp_path: Path) -> None:
    with serve(Release(CONTENT, ranges=False, cuts=[300_000])) as release:
        assert fetch(release, tmp_path).path.read_bytes() == CONTENT
    assert [header for _, header in release.requests] == [None, "bytes=300000-"]


def test_repeated_interruptions_by_a_server_without_ranges_end_the_download(tmp_path: Path) -> None:
    cuts = [3000, 2000, 3000, 2000, 3000, 2000]
    with serve(Release(CONTENT, ranges=False, cuts=cuts)) as release:
        assert "bytes are kept" in refusal(release, tmp_path)
    assert len(release.requests) == 4


def test_another_range_than_requested_is_refused(tmp_path: Path) -> None:
    with serve(Release(CONTENT, wrong_ranges=True, cuts=[300_000])) as release:
        assert "another part of the file ('bytes 300001-" in refusal(release, tmp_path)
    assert names_in(tmp_path) == set()


def test_a_complete_part_is_not_requested_again(tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(CONTENT)
    (tmp_path / f"{PART}.validator").write_text('"v1"')
    with serve(Release(CONTENT)) as release:
        assert fetch(release, tmp_path).path.read_bytes() == CONTENT
    assert release.requests == [(f"/{NAME}", f"bytes={len(CONTENT)}-")]


@pytest.mark.parametrize("note", ["", '"v\n1"', "\u20ac", '"v1"\r\nX: y'])
def test_an_unprintable_validator_is_ignored(tmp_path: Path, note: str) -> None:
    (tmp_path / PART).write_bytes(CONTENT[:1000])
    (tmp_path / f"{PART}.validator").write_text(note)
    with serve(Release(CONTENT)) as release:
        assert fetch(release, tmp_path).path.read_bytes() == CONTENT
    assert release.requests == [(f"/{NAME}", None)]


def test_a_part_that_is_too_long_is_deleted(tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(CONTENT + b"more")
    (tmp_path / f"{PART}.validator").write_text('"v1"')
    with serve(Release(CONTENT)) as release:
        assert fetch(release, tmp_path).path.read_bytes() == CONTENT
    assert len(release.requests) == 2


def test_a_response_without_a_length_is_accepted(tmp_path: Path) -> None:
    with serve(Release(CONTENT, declares_length=False)) as release:
        assert fetch(release, tmp_path).path.read_bytes() == CONTENT


def test_a_wrong_checksum_is_shown_and_the_file_not_kept(tmp_path: Path) -> None:
    with serve(Release(CONTENT)) as release:
        message = refusal(release, tmp_path, sha256="00ff" * 16)
    assert SHA256 in message
    assert "00ff" * 16 in message
    assert names_in(tmp_path) == set()


def test_a_checksum_may_be_written_in_capitals(tmp_path: Path) -> None:
    with serve(Release(CONTENT)) as release:
        assert fetch(release, tmp_path, f" {SHA256.upper()}\n").sha256 == SHA256


@pytest.mark.parametrize(
    ("status", "problem"), [(404, "there is no such file (404)"), (503, "answered 503")]
)
def test_a_server_that_refuses_is_named(tmp_path: Path, status: int, problem: str) -> None:
    with serve(Release(CONTENT, status=status)) as release:
        message = refusal(release, tmp_path)
    assert problem in message
    assert message.startswith(release.url)
    assert not (tmp_path / NAME).exists()


def test_without_a_server_the_error_names_the_alternative(tmp_path: Path) -> None:
    with serve(Release(CONTENT)) as release:
        pass
    assert "lite-detr weights convert" in refusal(release, tmp_path)


def test_redirects_are_followed(tmp_path: Path) -> None:
    with serve(Release(CONTENT)) as storage:
        moved = Release(b"", redirect=f"{storage.url}/elsewhere")
        with serve(moved) as release:
            assert fetch(release, tmp_path).path == tmp_path / NAME
    assert storage.requests == [("/elsewhere", None)]


def test_redirects_away_from_https_are_refused() -> None:
    request = urllib.request.Request("https://example.org/a")
    with pytest.raises(DownloadError, match="redirects away from https"):
        _SafeRedirects().redirect_request(
            request, BytesIO(), 302, "Found", HTTPMessage(), "http://example.org/a"
        )


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/a", "weights.pth"])
def test_only_http_addresses_are_opened(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError, match="no http or https address"):
        download(url, tmp_path)


def test_a_full_disk_is_named_and_the_bytes_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = PartialFile.append

    def fill_up(part: PartialFile, piece: bytes) -> None:
        if part.size:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(part, piece)

    with serve(Release(CONTENT)) as release:
        with monkeypatch.context() as patch:
            patch.setattr(PartialFile, "append", fill_up)
            assert "cannot be written: No space left" in refusal(release, tmp_path)
        assert names_in(tmp_path) == {PART, f"{PART}.validator"}
        assert fetch(release, tmp_path).path.read_bytes() == CONTENT
    assert release.requests[-1][1] is not None


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="cannot be written"):
        download("http://127.0.0.1:9/a.pth", tmp_path / "file" / "folder")


def test_two_processes_do_not_write_the_same_part(tmp_path: Path) -> None:
    with (tmp_path / PART).open("ab") as other, serve(Release(CONTENT)) as release:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another process is downloading" in refusal(release, tmp_path)
    assert release.requests == []


def test_releases_are_the_published_files() -> None:
    assert release_url("lite-dino-r50-h3l1-2p1x3") == (
        "https://github.com/IDEA-Research/Lite-DETR/releases/download/litedetr/r50_s3ex3_50.4.pth"
    )
    assert release_url("lite-dino-r50-h2l2-2p1x3", "http://mirror/x/").endswith(
        "mirror/x/r50_s2ex3_49.9.pth"
    )
    with pytest.raises(DownloadError) as caught:
        release_url("dino-r50-4scale")
    assert all(name in str(caught.value) for name in RELEASES)

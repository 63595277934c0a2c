"""The images that arguments name: links, folders and files that cannot be read, and suffixes."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from model.images.formats import IMAGE_SUFFIXES, identify_format
from model.images.limits import ImageLimits
from service.cli.inputs import ImageFile, UnreadableFile, find_images

LIMITS = ImageLimits(max_bytes=1 << 20, max_pixels=1 << 20)
NOBODY = 65534
TOO_LONG = "n" * 300


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"image")


def found(*arguments: Path | str, outputs: Path | None = None) -> list[str]:
    return [file.name for file in find_images([str(each) for each in arguments], outputs)]


def below(folder: Path, **more: Path) -> list[str]:
    return [str(Path(name).relative_to(folder)) for name in found(folder, **more)]


def problem(file: ImageFile) -> str | None:
    """Why a file cannot be read; None if it can."""
    try:
        file.read(LIMITS)
    except UnreadableFile as error:
        return str(error)
    return None


@contextmanager
def subject_to_permissions() -> Iterator[None]:
    """Runs the block as a user who may not read everything, as root may."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(NOBODY)
    except OSError:
        pytest.skip("root cannot become another user here")
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user may read, with images, and subfolders that none may."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        with subject_to_permissions():
            if not os.access(folder, os.X_OK, effective_ids=True):
                pytest.skip("other users cannot reach the folder of temporary files")
        write(folder, "a.jpg", "closed/b.jpg", "listed/c.jpg", "listed/inner/d.jpg", "z.jpg")
        (folder / "link").symlink_to(folder / "listed" / "inner")
        (folder / "closed").chmod(0)
        (folder / "listed").chmod(0o444)  # its names may be read, its files may not be reached
        yield folder
        for each in ("closed", "listed"):
            (folder / each).chmod(0o755)


def test_folders_that_cannot_be_read_are_reported_in_their_place(shared: Path) -> None:
    with subject_to_permissions():
        files = find_images([str(shared)])
        problems = {str(Path(f.name).relative_to(shared)): problem(f) for f in files}
    denied = "Permission denied"
    assert problems == {
        "a.jpg": None,
        "closed": denied,
        "link": denied,
        "listed/c.jpg": denied,
        "listed/inner": denied,
        "z.jpg": None,
    }
    assert [file.name for file in files] == sorted(file.name for file in files)


def test_a_pattern_into_a_locked_folder_does_not_stop_the_others(shared: Path) -> None:
    with subject_to_permissions():
        files = find_images([str(shared / each) for each in ("listed/*.jpg", "closed/*.jpg", "z*")])
        problems = [problem(file) for file in files]
    assert [Path(file.name).name for file in files] == ["c.jpg", "*.jpg", "z.jpg"]
    assert problems == ["Permission denied", "no file matches", None]


def test_a_file_in_a_locked_folder_does_not_stop_the_others(shared: Path) -> None:
    with subject_to_permissions():
        files = find_images([str(shared / name) for name in ("a.jpg", "closed/b.jpg", "closed")])
        assert [problem(file) for file in files] == [None] + ["Permission denied"] * 2


@pytest.mark.parametrize("name", [TOO_LONG, f"{TOO_LONG}.jpg", f"{TOO_LONG}/a.jpg"])
def test_a_name_that_is_too_long_is_an_error_of_that_file(tmp_path: Path, name: str) -> None:
    write(tmp_path, "a.jpg")
    files = find_images([str(tmp_path / name), str(tmp_path / "a.jpg")])
    assert [problem(file) for file in files] == ["File name too long", None]
    assert problem(find_images([str(tmp_path / f"{TOO_LONG}*.jpg")])[0]) == "no file matches"


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    photos, other = tmp_path / "photos", tmp_path / "other"
    write(photos, "a.jpg")
    write(other, "b.jpg", "deep/c.jpg")
    (photos / "link").symlink_to(other)
    assert below(photos) == ["a.jpg", "link/b.jpg", "link/deep/c.jpg"]


def test_links_in_a_circle_end_and_a_file_keeps_its_own_path(tmp_path: Path) -> None:
    write(tmp_path, "b/inner/c.jpg", "b/d.jpg")
    (tmp_path / "a").symlink_to(tmp_path / "b")  # sorted before it
    (tmp_path / "b" / "inner" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "self").symlink_to(".")
    assert below(tmp_path) == ["b/d.jpg", "b/inner/c.jpg"]
    assert below(tmp_path / "b" / "inner") == ["c.jpg", "up/b/d.jpg"]


def test_links_to_no_file_are_errors_if_their_names_are_those_of_images(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    for name in ("absent.jpg", "absent.txt"):
        (tmp_path / name).symlink_to(tmp_path / "nothing")
    for name in ("itself.jpg", "itself"):
        (tmp_path / name).symlink_to(name)
    problems = {Path(file.name).name: problem(file) for file in find_images([str(tmp_path)])}
    assert problems == {
        "a.jpg": None,
        "absent.jpg": "No such file or directory",
        "itself.jpg": "Too many levels of symbolic links",
    }


@pytest.mark.parametrize("inputs", [".", "*.jpg"])
def test_a_link_to_itself_does_not_stop_a_run_with_outputs(tmp_path: Path, inputs: str) -> None:
    write(tmp_path, "a.jpg")
    (tmp_path / "itself.jpg").symlink_to("itself.jpg")
    files = found(tmp_path / inputs, outputs=tmp_path / "drawn")
    assert [Path(name).name for name in files] == ["a.jpg", "itself.jpg"]


def test_links_into_the_outputs_are_no_inputs(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "drawn/a.jpg", "drawn/deep/a.jpg")
    (tmp_path / "all").symlink_to(tmp_path / "drawn")
    (tmp_path / "part").symlink_to(tmp_path / "drawn" / "deep")
    (tmp_path / "one.jpg").symlink_to(tmp_path / "drawn" / "a.jpg")
    assert below(tmp_path, outputs=tmp_path / "drawn") == ["a.jpg"]


def test_special_files_and_folders_with_names_of_images_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "folder.jpg/a.png", "notes.txt")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "null.jpg").symlink_to("/dev/null")
    assert below(tmp_path) == ["folder.jpg/a.png"]


def test_files_of_a_folder_are_in_the_order_of_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "b.jpg", "a/z.jpg", "a.jpg", "a b/x.jpg", ".hidden/h.jpg")
    assert below(tmp_path) == [".hidden/h.jpg", "a/z.jpg", "a b/x.jpg", "a.jpg", "b.jpg"]
    monkeypatch.chdir(tmp_path)
    assert found("a", ".")[:3] == ["a/z.jpg", ".hidden/h.jpg", "a/z.jpg"]


def test_suffixes_have_all_that_pillow_gives_to_the_accepted_formats() -> None:
    Image.init()
    formats = {"JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"}
    known = {suffix for suffix, name in Image.EXTENSION.items() if name in formats}
    assert known | {".heic", ".heics", ".heif", ".heifs", ".hif"} <= IMAGE_SUFFIXES


@pytest.mark.parametrize(
    ("suffix", "written", "read"),
    [
        (".jpe", "JPEG", "JPEG"),
        (".JFIF", "JPEG", "JPEG"),
        (".mpo", "MPO", "JPEG"),
        (".apng", "PNG", "PNG"),
    ],
)
def test_less_usual_suffixes_are_found_in_folders(
    tmp_path: Path, suffix: str, written: str, read: str
) -> None:
    encoded = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("teal", "red")]
    more = {} if written == "JPEG" else {"save_all": True, "append_images": frames[1:]}
    frames[0].save(encoded, written, **more)
    (tmp_path / f"a{suffix}").write_bytes(encoded.getvalue())
    assert below(tmp_path) == [f"a{suffix}"]
    assert identify_format(encoded.getvalue(), len(encoded.getvalue())) == read

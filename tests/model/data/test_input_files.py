"""Files of users: only regular ones, read with a limit."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from model.data.annotations import GroundTruth
from model.data.errors import DataError
from model.data.image_files import read_image, read_size
from model.data.input_files import (
    FileTooLarge,
    open_regular_file,
    read_at_most,
    read_regular_file,
    read_text_file,
)
from model.training.sources import CacheSource
from model.weights.header import CheckpointError, read_header
from model.weights.info import resolve_model
from model.weights.official import load_official
from service.access.api_keys import KeyFileError, KeyRing
from service.access.tls import TlsFileError, TlsFiles

SPARSE_BYTES = 20 << 30


def _pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _socket(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(os.path.relpath(path))  # short enough for an address
    return path


def _device(_path: Path) -> Path:
    return Path("/dev/zero")


def _link_to_pipe(path: Path) -> Path:
    path.symlink_to(_pipe(path.with_suffix(".pipe")))
    return path


SPECIAL_FILES = {"pipe": _pipe, "socket": _socket, "device": _device, "link": _link_to_pipe}


@pytest.fixture(params=SPECIAL_FILES.values(), ids=list(SPECIAL_FILES))
def special(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make: Callable[[Path], Path] = request.param
    return make(tmp_path / "scenes.jsonl")


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    path = tmp_path / "scenes.jsonl"
    with path.open("wb") as file:
        file.truncate(SPARSE_BYTES)
    return path


def test_special_files_are_refused_without_waiting(special: Path) -> None:
    with pytest.raises(OSError, match="not a regular file but a"):
        open_regular_file(special)


def test_a_folder_is_named_as_one(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        read_regular_file(tmp_path, 10)


def test_a_regular_file_is_read_whole_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read_regular_file(link, 5) == b"12345"
    with pytest.raises(FileTooLarge, match="5 bytes or more; at most 4 are read") as caught:
        read_regular_file(path, 4)
    assert caught.value.num_bytes == 5


def test_a_file_whose_size_is_said_to_be_0_is_limited_too() -> None:
    path = Path("/proc/self/maps")  # a regular file of 0 bytes with a long content
    with pytest.raises(FileTooLarge):
        read_regular_file(path, 100)
    assert b"python" in read_regular_file(path, 1 << 24)


def test_a_sparse_file_is_refused_by_its_size(sparse: Path) -> None:
    with pytest.raises(FileTooLarge, match=str(SPARSE_BYTES)):
        read_text_file(sparse)


def test_a_stream_is_read_in_pieces_up_to_the_limit() -> None:
    data = bytes(range(256)) * 20_000
    assert read_at_most(io.BytesIO(data), len(data) + 1) == data
    assert read_at_most(io.BytesIO(data), 3_000_000) == data[:3_000_000]
    with Path("/dev/zero").open("rb") as endless:
        assert len(read_at_most(endless, 2_500_000)) == 2_500_000


READERS: dict[str, tuple[Callable[[Path], object], type[Exception]]] = {
    "annotations": (GroundTruth.read, DataError),
    "image": (read_image, DataError),
    "image header": (read_size, DataError),
    "scenes": (lambda path: CacheSource(path.parent, ["a"]), DataError),
    "weights": (read_header, CheckpointError),
    "checkpoint": (load_official, CheckpointError),
    "keys": (KeyRing, KeyFileError),
    "certificate": (lambda path: TlsFiles(path, path), TlsFileError),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_special_files(reader: str, special: Path) -> None:
    if reader == "scenes" and special.name != "scenes.jsonl":
        return  # its file has a fixed name
    read, error = READERS[reader]
    with pytest.raises(error, match="regular file"):
        read(special)


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_a_sparse_file(reader: str, sparse: Path) -> None:
    read, error = READERS[reader]
    with pytest.raises(error):
        read(sparse)


def test_a_model_that_is_a_pipe_is_named_as_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a regular file"):
        resolve_model(str(_pipe(tmp_path / "model.safetensors")))

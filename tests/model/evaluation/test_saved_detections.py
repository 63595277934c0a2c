"""The file of the detections so far: exact, bound to its run, and safe against cut lines."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from model.data.errors import OutputError
from model.detections import Detections
from model.evaluation import saved_detections
from model.evaluation.detections import ImageDetections
from model.evaluation.saved_detections import open_saved_detections

RUN = {"model": "a", "precision": "fp32"}


def entry(image_id: int, count: int = 3) -> ImageDetections:
    rng = np.random.default_rng(image_id)
    scores = np.sort(rng.random(count, np.float32))[::-1].copy()
    labels = rng.integers(1, 90, count)
    return ImageDetections(
        image_id, Detections(scores, labels, rng.random((count, 4), np.float32) * 640), 12.5
    )


def same(one: ImageDetections, other: ImageDetections) -> bool:
    pairs = (
        (one.detections.scores, other.detections.scores),
        (one.detections.labels, other.detections.labels),
        (one.detections.boxes_xyxy, other.detections.boxes_xyxy),
    )
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def saved(path: Path, *numbers: int) -> dict[int, ImageDetections]:
    with open_saved_detections(path, RUN) as file:
        return file.of(numbers)


def test_detections_come_back_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "a.partial"
    entries = [entry(1), entry(2, 0), entry(2**40)]
    with open_saved_detections(path, RUN) as file:
        file.add(entries[:2])
        file.add(entries[2:])
    found = saved(path, 1, 2, 3, 2**40)
    assert list(found) == [1, 2, 2**40]
    assert all(same(found[each.image_id], each) for each in entries)
    assert found[1].milliseconds == 12.5


def test_a_file_cut_anywhere_loses_only_what_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.partial"
    with open_saved_detections(path, RUN) as file:
        file.add([entry(1), entry(2)])
    whole = path.read_bytes()
    ends = [number + 1 for number, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        assert len(saved(path, 1, 2)) == max(0, sum(end <= cut for end in ends) - 1)
        with open_saved_detections(path, RUN) as file:
            file.add([entry(3)])
        assert 3 in saved(path, 3)


@pytest.mark.parametrize(
    "line", [b"{}\n", b"[1]\n", b"\xff\n", b'{"image_id":1,"scores":[0.5],"category_ids":[]}\n']
)
def test_a_line_that_is_no_entry_ends_the_file(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.partial"
    with open_saved_detections(path, RUN) as file:
        file.add([entry(1)])
    with path.open("ab") as raw:
        raw.write(line)
    with open_saved_detections(path, RUN) as file:
        file.add([entry(2)])
    assert list(saved(path, 1, 2)) == [1, 2]


@pytest.mark.parametrize("content", [b"notes", b"{}", b'{"format": 3}', b"\0" * 70_000])
def test_other_files_are_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.partial"
    path.write_bytes(content)
    with (
        pytest.raises(OutputError, match="is something else"),
        open_saved_detections(path, RUN, overwrite=True),
    ):
        pass
    assert path.read_bytes() == content


def test_another_run_is_refused_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.partial"
    with open_saved_detections(path, RUN) as file:
        file.add([entry(1)])
    other = {"model": "b", "precision": "fp32"}
    with (
        pytest.raises(OutputError, match="whose model is a, not b"),
        open_saved_detections(path, other),
    ):
        pass
    assert list(saved(path, 1)) == [1]
    with open_saved_detections(path, other, overwrite=True) as file:
        assert file.of([1]) == {}


def test_two_evaluations_cannot_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.partial"
    with (
        open_saved_detections(path, RUN),
        pytest.raises(OutputError, match="in use by another evaluation"),
        open_saved_detections(path, RUN),
    ):
        pass


def test_a_folder_a_pipe_or_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe", "none/a.partial"):
        with pytest.raises(OutputError), open_saved_detections(tmp_path / name, RUN):
            pass


def test_a_full_disk_is_an_error_of_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.partial"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_saved_detections(path, RUN) as file:
        file.add([entry(1)])
        monkeypatch.setattr(saved_detections, "_write_all", full)
        with pytest.raises(OutputError, match="No space left on device"):
            file.add([entry(2)])
    assert list(saved(path, 1, 2)) == [1]

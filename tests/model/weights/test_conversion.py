from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from model import VARIANTS
from model.data.errors import OutputError
from model.weights.checkpoint import load_detector
from model.weights.conversion import convert, pull
from model.weights.info import CheckpointError, resolve_model
from model.weights.releases import RELEASES
from tests.support.release_server import Release, serve
from tests.support.small_weights import SMALL_R50, weights_of, write_official, write_small

NAME = SMALL_R50.name
FILE = "small_r50.pth"


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("official") / FILE
    return write_official(path, weights_of(SMALL_R50), enc_scale=2).read_bytes()


@pytest.fixture(autouse=True)
def _release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, NAME, SMALL_R50)
    monkeypatch.setitem(RELEASES, NAME, FILE)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_pulling_leaves_one_file_that_serves_by_name(official: bytes, tmp_path: Path) -> None:
    lines: list[str] = []
    sha256 = hashlib.sha256(official).hexdigest()
    with serve(Release(official)) as release:
        base_url = f"{release.url}/release"
        path = pull(NAME, tmp_path, base_url=base_url, sha256=sha256, report=lines.append)
        assert names_in(tmp_path) == {f"{NAME}.safetensors"}
        assert resolve_model(NAME, tmp_path) == path
        assert load_detector(path)[1].config == SMALL_R50
        assert lines[0] == f"SHA-256 of {FILE}: {sha256}"
        again = pull(NAME, tmp_path, base_url=base_url, sha256=sha256, report=lines.append)
        assert again == path
        assert "already here" in lines[-1]
    assert release.requests == [(f"/release/{FILE}", None)]


@pytest.mark.slow
def test_a_pulled_file_of_another_checksum_is_pulled_again(official: bytes, tmp_path: Path) -> None:
    with serve(Release(official)) as release:
        path = pull(NAME, tmp_path, base_url=release.url)
        with pytest.raises(CheckpointError, match="has SHA-256"):
            pull(NAME, tmp_path, base_url=release.url, sha256="00" * 32)
        assert names_in(tmp_path) == {path.name}
        path.write_bytes(b"damaged")
        with pytest.raises(OutputError, match="--overwrite"):
            pull(NAME, tmp_path, base_url=release.url)
        assert path.read_bytes() == b"damaged"
        pull(NAME, tmp_path, base_url=release.url, overwrite=True)
        assert load_detector(path)[1].name == NAME
    assert len(release.requests) == 3


def test_another_model_of_that_name_is_not_taken_for_the_pulled_one(
    official: bytes, tmp_path: Path
) -> None:
    path = tmp_path / f"{NAME}.safetensors"
    write_small(path)
    small = path.read_bytes()
    with serve(Release(official)) as release:
        with pytest.raises(OutputError, match="--overwrite"):
            pull(NAME, tmp_path, base_url=release.url)
        assert path.read_bytes() == small
        pull(NAME, tmp_path, base_url=release.url, overwrite=True)
        whole = path.stat().st_size
        pull(NAME, tmp_path, base_url=release.url, half=True)
        assert path.stat().st_size == whole  # it is here already
        pull(NAME, tmp_path, base_url=release.url, half=True, overwrite=True)
        assert path.stat().st_size < 0.6 * whole


@pytest.mark.parametrize("sha256", ["", "00", "g" * 64, "0" * 63])
def test_a_checksum_that_is_none_is_refused(tmp_path: Path, sha256: str) -> None:
    with pytest.raises(CheckpointError, match="no SHA-256 of 64"):
        pull(NAME, tmp_path, base_url="http://127.0.0.1:9", sha256=sha256)


def test_a_complete_download_outlives_a_failed_conversion(
    official: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise CheckpointError(tmp_path / "model", "cannot be written: No space left on device")

    with serve(Release(official)) as release:
        with monkeypatch.context() as patch:
            patch.setattr("model.weights.conversion.save_checkpoint", full)
            with pytest.raises(CheckpointError, match="No space"):
                pull(NAME, tmp_path, base_url=release.url)
        assert (tmp_path / FILE).read_bytes() == official
        pull(NAME, tmp_path, base_url=release.url)
    assert len(release.requests) == 1


def test_a_file_that_is_no_checkpoint_is_deleted(tmp_path: Path) -> None:
    page = Release(b"<html>please sign in</html>")
    with serve(page), pytest.raises(CheckpointError, match=FILE):
        pull(NAME, tmp_path, base_url=page.url)
    assert names_in(tmp_path) == set()


def test_a_variant_without_a_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no release file"):
        pull("dino-r50-4scale", tmp_path)


@pytest.mark.slow
def test_the_users_own_download_is_converted_and_kept(official: bytes, tmp_path: Path) -> None:
    own = tmp_path / FILE
    own.write_bytes(official)
    with pytest.raises(CheckpointError, match="has SHA-256"):
        pull(NAME, tmp_path, base_url="http://127.0.0.1:9", sha256="00" * 32)
    path = pull(NAME, tmp_path, base_url="http://127.0.0.1:9")
    assert load_detector(path)[1].name == NAME
    assert own.read_bytes() == official


def test_existing_target_is_replaced_only_on_request(official: bytes, tmp_path: Path) -> None:
    source, target = tmp_path / FILE, tmp_path / "mine.safetensors"
    source.write_bytes(official)
    target.write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"mine\.safetensors exists already"):
        convert(source, target)
    with pytest.raises(OutputError, match="is an input of this command"):
        convert(source, source, overwrite=True)
    assert (source.read_bytes(), target.read_bytes()) == (official, b"mine")
    info = convert(source, target, overwrite=True)
    assert info.category_ids == tuple(range(91))


def test_two_classes_of_one_name_are_refused(official: bytes, tmp_path: Path) -> None:
    source = tmp_path / FILE
    source.write_bytes(official)
    labels = ["N/A", "N/A", *(f"class {number}" for number in range(88)), "class 3"]
    with pytest.raises(CheckpointError, match="two of its classes would have the name 'class 3'"):
        convert(source, tmp_path / "out.safetensors", labels=labels)

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from model import VARIANTS
from model.weights.header import read_header
from model.weights.info import CheckpointError, read_model_info, resolve_model
from model.weights.official import load_official
from model.weights.summary import describe, known_models
from tests.support.small_weights import LABELS, SMALL, join_file, split_file

METADATA = {
    "format": "lite-detr/1",
    "config": json.dumps(SMALL.to_dict()),
    "labels": json.dumps(LABELS),
    "score_threshold": "0.25",
    "name": "small",
    "description": "finds pets",
}


@pytest.fixture(scope="module")
def small_bytes() -> bytes:
    """A file whose header is right; only three tensors, which nothing here looks into."""
    header: dict[str, Any] = {"__metadata__": METADATA}
    for index in range(3):
        offsets = [index * 48, index * 48 + 48]
        header[f"t{index}"] = {"dtype": "F16", "shape": [2, 3, 4], "data_offsets": offsets}
    return join_file(header, bytes(144))


@pytest.fixture
def small_file(small_bytes: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    path.write_bytes(small_bytes)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_model_info(path)
    assert str(caught.value).startswith(f"{path}: ")
    return caught.value.problem


def rewrite_metadata(path: Path, **changes: str | None) -> None:
    header, tensors = split_file(path.read_bytes())
    for key, value in changes.items():
        if value is None:
            del header["__metadata__"][key]
        else:
            header["__metadata__"][key] = value
    path.write_bytes(join_file(header, tensors))


def rewrite_config(path: Path, **changes: Any) -> None:
    header, _ = split_file(path.read_bytes())
    config = {**json.loads(header["__metadata__"]["config"]), **changes}
    rewrite_metadata(path, config=json.dumps(config))


def test_names_and_descriptions_can_be_encoded(small_file: Path) -> None:
    labels = '["cat", "\\ud83d", "dog"]'
    rewrite_metadata(small_file, labels=labels, name="a\ud83d", description="\udfff.")
    info = read_model_info(small_file)
    assert info.labels == ("cat", "\ufffd", "dog")
    assert (info.name, info.description) == ("a\ufffd", "\ufffd.")


def test_info_is_what_was_saved(small_file: Path, small_bytes: bytes) -> None:
    info = read_model_info(small_file)
    assert info.config == SMALL
    assert info.labels == LABELS
    assert (info.name, info.score_threshold, info.description) == ("small", 0.25, "finds pets")
    assert info.version == hashlib.sha256(small_bytes).hexdigest()[:12]


def test_reading_info_needs_no_torch(small_file: Path) -> None:
    script = (
        "import sys; from model.weights.info import read_model_info, resolve_model;"
        "import model.labels, model.weights.releases, model.weights.summary;"
        f"print(read_model_info(resolve_model({str(small_file)!r})).name);"
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "small", "")


def test_a_file_cut_anywhere_is_refused(small_file: Path, small_bytes: bytes) -> None:
    header_bytes = 8 + int.from_bytes(small_bytes[:8], "little")
    total = len(small_bytes)
    cuts = {0, 1, 7, 8, 9, header_bytes - 1, header_bytes, header_bytes + 1, total - 1}
    cuts.update(range(0, total, 7))
    for cut in sorted(cuts):
        small_file.write_bytes(small_bytes[:cut])
        assert "truncated" in refusal(small_file), cut


def test_bytes_after_the_last_tensor_are_refused(small_file: Path, small_bytes: bytes) -> None:
    small_file.write_bytes(small_bytes + b"\0")
    assert refusal(small_file) == "has 1 bytes after its last tensor"


@pytest.mark.parametrize("length", [2**23 + 1, 2**40, 2**63, 2**64 - 1])
def test_an_impossible_header_length_is_refused_before_reading(
    small_file: Path, length: int
) -> None:
    small_file.write_bytes(length.to_bytes(8, "little") + b"{}")
    assert f"declares a header of {length} bytes" in refusal(small_file)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b'{"a": NaN}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": 1' + b"0" * 5000 + b"}",
        b'{"__metadata__": {"a": 1}}',
        b'{"__metadata__": []}',
        b'{"__metadata__": {"a": "1", "a": "2"}}',
    ],
)
def test_a_header_that_is_not_strict_json_is_refused(small_file: Path, text: bytes) -> None:
    small_file.write_bytes(len(text).to_bytes(8, "little") + text)
    assert "header" in refusal(small_file) or "declared" in refusal(small_file)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ([], "not declared"),
        ({"dtype": "F32", "shape": [1]}, "not declared"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "x": 1}, "not declared"),
        ({"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}, "unsupported dtype"),
        ({"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}, "unsupported dtype"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, "impossible shape"),
        ({"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}, "impossible shape"),
        ({"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}, "impossible shape"),
        ({"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}, "impossible shape"),
        ({"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}, "impossible shape"),
        ({"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}, "impossible shape"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0]}, "impossible offsets"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}, "claims -4 bytes"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "claims 4 bytes"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [1, 5]}, "does not follow"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "truncated: 4 of 8"),
    ],
)
def test_a_tensor_with_a_false_declaration_is_refused(
    tmp_path: Path, entry: object, problem: str
) -> None:
    path = tmp_path / "lie.safetensors"
    path.write_bytes(join_file({"a": entry}, bytes(4)))
    with pytest.raises(CheckpointError, match=problem):
        read_header(path)


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "overlap.safetensors"
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    path.write_bytes(join_file({"a": entry, "b": entry}, bytes(4)))
    with pytest.raises(CheckpointError, match="tensor 'b' does not follow"):
        read_header(path)


def test_another_format_tag_is_refused_by_name(small_file: Path) -> None:
    rewrite_metadata(small_file, format="lite-detr/2")
    assert "'lite-detr/2'" in refusal(small_file)
    rewrite_metadata(small_file, format=None)
    assert "None" in refusal(small_file)


@pytest.mark.parametrize("key", ["config", "labels", "score_threshold", "name"])
def test_metadata_that_is_missing_is_named(small_file: Path, key: str) -> None:
    rewrite_metadata(small_file, **{key: None})
    assert refusal(small_file) == f"its metadata lacks {key}"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"wings": 2}, "unknown field 'wings'"),
        ({"num_queries": "900"}, "'num_queries' should be int, not str"),
        ({"num_queries": True}, "'num_queries' should be int, not bool"),
        ({"num_queries": 0}, "impossible num_queries (0)"),
        ({"num_queries": 10**12}, "impossible num_queries"),
        ({"num_heads": 0}, "impossible num_heads (0)"),
        ({"d_model": 33}, "d_model=33"),
        ({"backbone": "../../etc"}, "backbone '../../etc' is not known"),
        ({"backbone": ["resnet50"]}, "is not known"),
        ({"num_classes": 4}, "3 labels for a network of 4 classes"),
    ],
)
def test_a_config_field_that_is_wrong_is_named(
    small_file: Path, changes: dict[str, Any], problem: str
) -> None:
    rewrite_config(small_file, **changes)
    assert problem in refusal(small_file)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("config", "[]", "config is not a JSON object"),
        ("config", "{", "config is not valid JSON"),
        ("labels", '{"0": "cat"}', "not a list of names"),
        ("labels", '["cat", 1, "dog"]', "not a list of names"),
        ("labels", '["cat", "", "dog"]', "not a list of names"),
        ("labels", '["cat"]', "1 labels for a network of 3 classes"),
        ("score_threshold", "high", "not a number in 0..1"),
        ("score_threshold", "nan", "not a number in 0..1"),
        ("score_threshold", "1.5", "not a number in 0..1"),
    ],
)
def test_metadata_that_is_wrong_is_refused(
    small_file: Path, key: str, value: str, problem: str
) -> None:
    rewrite_metadata(small_file, **{key: value})
    assert problem in refusal(small_file)


def test_the_error_for_a_pytorch_file_names_the_conversion(small_file: Path) -> None:
    small_file.write_bytes(b"PK\x03\x04 and so on")
    assert "lite-detr weights convert" in refusal(small_file)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n", "Git LFS"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "an HTML page"),
        (b'{"images": [], "annotations": []}', "is JSON"),
        (b"%PDF-1.7 and so on", "a PDF document"),
        (b"\xff\xd8\xff\xe0 and so on", "declares a header"),
    ],
)
def test_a_file_of_another_kind_is_named(small_file: Path, data: bytes, named: str) -> None:
    small_file.write_bytes(data)
    assert named in refusal(small_file)


def test_a_training_state_is_named_wherever_weights_are_expected(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "last.pt"
    torch.save({"format": "lite-detr-training/1", "detector": {}}, path)
    assert "state of a training run" in refusal(path)
    with pytest.raises(CheckpointError, match="state of a training run"):
        load_official(path)
    other = tmp_path / "other.pth"
    torch.save({"model": {}}, other)
    assert "PyTorch checkpoint" in refusal(other)


def test_repeated_names_take_linear_time(small_file: Path) -> None:
    count = 200_000  # 8 MB, the longest header; quadratic time would be hours
    text = b"{" + b",".join(b'"n%07d":{},"n%07d":{}' % (n, n) for n in range(count)) + b"}"
    small_file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    started = time.process_time()
    assert "occurs twice" in refusal(small_file)
    assert time.process_time() - started < 15


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1, 2]", "3 different ids"),
        ("[1, 2, 2]", "3 different ids"),
        ('["1", 2, 3]', "not a list of integers"),
        ("[true, 2, 3]", "not a list of integers"),
        ("[1, 2, 9223372036854775808]", "not a list of integers"),
        ("{", "category_ids is not valid JSON"),
    ],
)
def test_category_ids_that_are_wrong_are_refused(small_file: Path, text: str, problem: str) -> None:
    rewrite_metadata(small_file, category_ids=text)
    assert problem in refusal(small_file)


def test_category_ids_are_those_of_the_file_or_the_class_index(small_file: Path) -> None:
    assert read_model_info(small_file).category_ids is None
    rewrite_metadata(small_file, category_ids="[18, 1, 90]")
    assert read_model_info(small_file).category_ids == (18, 1, 90)
    assert "18, 1, 90" in describe(small_file)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "nowhere.safetensors")
    assert "directory" in refusal(tmp_path)


def test_errors_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(CheckpointError("a.safetensors", "is odd")))
    assert (str(error), error.problem) == ("a.safetensors: is odd", "is odd")


def test_a_path_resolves_to_itself(small_file: Path, tmp_path: Path) -> None:
    assert resolve_model(str(small_file), tmp_path) == small_file


@pytest.mark.parametrize("name", ["", "default"])
def test_the_embedded_model_is_the_default(
    small_file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("model.weights.info.DEFAULT_MODEL_PATH", small_file)
    assert resolve_model(name) == small_file
    small_file.unlink()
    with pytest.raises(CheckpointError, match="embedded default model is missing"):
        resolve_model(name)


def test_a_variant_resolves_to_its_pulled_file(small_bytes: bytes, tmp_path: Path) -> None:
    name = "lite-dino-r50-h3l1-2p1x3"
    with pytest.raises(CheckpointError, match=f"run `lite-detr weights pull {name}`"):
        resolve_model(name, tmp_path)
    pulled = _pulled(tmp_path, name, small_bytes)
    assert resolve_model(name, tmp_path) == pulled
    rewrite_config(pulled, name="small")
    with pytest.raises(CheckpointError, match=r"another architecture \(small\).*--overwrite"):
        resolve_model(name, tmp_path)


def _pulled(folder: Path, name: str, data: bytes) -> Path:
    path = folder / f"{name}.safetensors"
    path.write_bytes(data)
    rewrite_config(path, name=name)
    return path


@pytest.mark.parametrize("name", ["yolo", "~nobody-here/a.safetensors", "x" * 5000, "a\0b", "/"])
def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve_model(name, tmp_path)
    assert all(name in str(caught.value) for name in ("default", *VARIANTS))


def test_without_a_home_folder_a_cache_folder_is_required(
    small_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert resolve_model(str(small_file)) == small_file
    with pytest.raises(CheckpointError, match="name a cache folder"):
        resolve_model("lite-dino-r50-h3l1-2p1x3")


def test_a_file_is_described(small_file: Path) -> None:
    text = describe(small_file)
    for fact in (
        "small",
        "finds pets",
        "cat, dog, bird",
        "H3L1-(2+1)x1",
        "F16",
        "key-aware",
        "0.25",
    ):
        assert fact in text, fact


def test_known_models_distinguish_pulled_models(small_bytes: bytes, tmp_path: Path) -> None:
    name = "lite-dino-r50-h3l1-2p1x3"
    _pulled(tmp_path, name, small_bytes)
    (tmp_path / "lite-dino-r50-h3l1-6p1x1.safetensors").write_bytes(small_bytes)
    (tmp_path / "h-detr-r50.safetensors").touch()
    states = {model.name: model.state for model in known_models(tmp_path)}
    assert states[name] == "pulled"
    assert states["lite-dino-r50-h3l1-6p1x1"] == "unusable"  # of another architecture
    assert states["h-detr-r50"] == "unusable"
    assert states["lite-dino-r50-h2l2-2p1x3"] == "to pull"


def test_the_card_of_a_file_is_described(small_file: Path) -> None:
    card = {"training": {"iterations": 7, "images": "of cats"}, "AP": 0.5, "long": "x" * 1000}
    rewrite_metadata(small_file, card=json.dumps(card))
    lines = dict(line.split(None, 1) for line in describe(small_file).splitlines())
    assert (lines["card.training.iterations"], lines["card.AP"]) == ("7", "0.5")
    assert lines["card.training.images"] == "of cats"
    assert len(lines["card.long"]) < 300


def test_text_of_a_file_reaches_no_terminal_as_control_characters(small_file: Path) -> None:
    hostile = "fine\x1b]0;owned\x07\nSHA-256   0000trusted\u202e"
    rewrite_metadata(
        small_file,
        name=hostile,
        description=hostile,
        labels=json.dumps([hostile, "dog", "bird"]),
        card=json.dumps({hostile: hostile}),
    )
    text = describe(small_file)
    assert all(each.isprintable() for each in text.replace("\n", ""))
    assert [line.split()[0] for line in text.splitlines()].count("SHA-256") == 1
    assert read_model_info(small_file).name.isprintable()


def test_labels_are_in_one_unicode_form(small_file: Path) -> None:
    decomposed = "cafe\u0301"
    rewrite_metadata(small_file, labels=json.dumps([decomposed, "dog", "bird"]))
    assert read_model_info(small_file).labels[0] == "caf\u00e9"


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_feature_levels", 2), ("longest_side", 65536), ("bucket_stride", 60000)],
)
def test_a_network_that_cannot_run_is_refused(small_file: Path, field: str, value: int) -> None:
    rewrite_config(small_file, **{field: value})
    assert f"{field}={value}" in refusal(small_file)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(range(256)) * 40)
    data = bytearray(path.read_bytes())
    data[60:90] = b"\xff" * 30
    path.write_bytes(data)
    assert "PyTorch checkpoint" in refusal(path)


def test_a_card_that_is_no_json_is_described_as_such(small_file: Path) -> None:
    rewrite_metadata(small_file, card="{")
    lines = dict(line.split(None, 1) for line in describe(small_file).splitlines())
    assert "not valid JSON" in lines["card"]

"""The `data.yaml` of a YOLO data set: which file of a folder it is, its content, class names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.data.errors import DataError
from model.data.formats.base import SPLIT_NAMES, files_of, split_names
from model.data.input_files import read_text_file

_USUAL_STEMS = ("data", "dataset")
_SUFFIXES = (".yaml", ".yml")
_FILES_SHOWN = 5


def find_yaml(path: Path) -> Path | None:
    """Returns the YAML file of a data set; None if there is none.

    Args:
        path: a YAML file, which is taken as it is, or a folder, of whose YAML files only those with
            names and a split count: others, such as dvc.yaml, belong to other programs.
    """
    if path.suffix.lower() in _SUFFIXES and path.is_file():
        return path
    files = _yaml_files(path)
    usual = next((file for file in files if _is_usual(file) and _is_data_set(file)), None)
    if usual is not None:
        return usual
    found = [file for file in files if _is_data_set(file)]
    return found[0] if len(found) == 1 else None


def unused_yaml(path: Path) -> str:
    """Says why none of the YAML files of a folder is used; empty if the folder has none.

    Raises:
        DataError: for a data.yaml that cannot be used, with what is wrong with it.
    """
    files = _yaml_files(path)
    if not files:
        return ""
    for file in filter(_is_usual, files):
        class_names(read_yaml(file), file)
        raise DataError(f"{file}: it has none of {', '.join(SPLIT_NAMES)}")
    found = [file for file in files if _is_data_set(file)]
    if found:
        return f"{_listed(found)} are all of YOLO data sets: name one of them instead of the folder"
    return f"no YAML file there ({_listed(files)}) has names and a split, as a data.yaml has"


def read_yaml(file: Path) -> dict[str, Any]:
    """Reads a YAML file that is a mapping.

    Returns:
        The mapping; its keys are in lower case, as some tools write `Train` for `train`.

    Raises:
        DataError: for any other file.
    """
    try:
        values = _parse(read_text_file(file), file)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{file}: not a data.yaml: it has no names")
    exact = {key: value for key, value in values.items() if isinstance(key, str)}
    return {key.lower(): value for key, value in exact.items()} | exact


def _parse(text: str, file: Path) -> object:
    import yaml  # noqa: PLC0415 - only for this format

    try:
        values: object = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{file}: not YAML: {' '.join(str(error).split())}") from error
    return values


def _yaml_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [file for suffix in _SUFFIXES for file in files_of(folder, f"*{suffix}")]


def _listed(files: list[Path]) -> str:
    more = ", ..." if len(files) > _FILES_SHOWN else ""
    return ", ".join(file.name for file in files[:_FILES_SHOWN]) + more


def _is_usual(file: Path) -> bool:
    return file.stem.lower() in _USUAL_STEMS


def _is_data_set(file: Path) -> bool:
    """Whether a YAML file can be read and has names and a split."""
    try:
        if "names" not in read_text_file(file).lower():  # saves parsing large other files
            return False
        values = read_yaml(file)
    except (DataError, OSError, UnicodeDecodeError):
        return False
    splits = [name for split in SPLIT_NAMES for name in split_names(split)]
    return bool(values.get("names")) and any(values.get(name) for name in splits)


def class_names(values: dict[str, Any], file: Path) -> tuple[str, ...]:
    """Returns the class names by class number, from a list or a mapping.

    Raises:
        DataError: if they are missing, have gaps, or are no texts and numbers.
    """
    names = values.get("names")
    if isinstance(names, dict):
        try:
            numbered = {int(number): name for number, name in names.items()}
        except (TypeError, ValueError) as error:
            raise DataError(f"{file}: names has a key that is not a class number") from error
        if sorted(numbered) != list(range(len(numbered))):
            raise DataError(f"{file}: names must have the class numbers 0 to {len(numbered) - 1}")
        names = [numbered[number] for number in range(len(numbered))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: names must be a list of class names, or a mapping by number")
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            shown = type(name).__name__ if isinstance(name, dict | list) else repr(name)
            raise DataError(
                f"{file}: names has {shown}, which is no text: YAML needs quotes around words such "
                "as yes, no, on, off and null"
            )
    return tuple(str(name) for name in names)

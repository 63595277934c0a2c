"""Converts published checkpoints to weights files of this project, for `serve --model NAME`.

`pull` = `releases.download` + `convert`. The new file contains its config and class names, so that
nothing about the official code needs to be known to serve it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from model.data.output_files import check_output_file
from model.labels import COCO_LABELS, NO_CLASS
from model.weights.checkpoint import save_checkpoint
from model.weights.header import CheckpointError, file_sha256
from model.weights.info import ModelInfo, default_cache_dir, read_model_info
from model.weights.official import load_official
from model.weights.releases import RELEASES, Progress, download, release_url

_ORIGIN = "converted from"
SCORE_THRESHOLD = 0.3  # suits DINO's scores on COCO


def pull(  # noqa: PLR0913 - options, by keyword
    name: str,
    cache_dir: Path | None = None,
    *,
    base_url: str | None = None,
    sha256: str | None = None,
    half: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    report: Callable[[str], None] | None = None,
) -> Path:
    """Downloads a published variant and converts it, unless it is there already.

    Args:
        name: a name in `releases.RELEASES`.
        cache_dir: the folder of pulled models; None for `default_cache_dir()`.
        base_url: a mirror of the release; None for the official address.
        sha256: expected checksum of the official file.
        half: stores float16 instead of float32.
        overwrite: replaces a file of that name, whatever it is.
        progress: called with (bytes received, total bytes or None).
        report: called with lines for the user.

    Returns:
        The safetensors file, which `resolve_model(name)` returns from now on.

    Raises:
        CheckpointError: if the file cannot be downloaded (`DownloadError`) or is not the variant;
            for a checksum that is none.
        OutputError: if there is another file of that name.
    """
    if sha256 is not None:
        sha256 = _parse_sha256(sha256)
    say = report or (lambda _line: None)
    url = release_url(name, base_url)
    folder = cache_dir or default_cache_dir()
    target = folder / f"{name}.safetensors"
    if target.exists() and not overwrite:
        if _is_pulled(target, name, sha256):
            say(f"{name} is already here: {target} (--overwrite replaces it)")
            return target
        if not _is_from(target, RELEASES[name]):
            check_output_file(target, overwrite=False)
    official = folder / RELEASES[name]
    if official.is_file():  # the user's own download
        _check_sha256(official, sha256)
        say(f"converting {official}, which is already here")
        info = convert(official, target, name, half=half, overwrite=True)
    else:
        downloaded = download(url, folder, sha256=sha256, progress=progress)
        say(f"SHA-256 of {downloaded.path.name}: {downloaded.sha256}")
        try:
            info = convert(downloaded.path, target, name, half=half, overwrite=True)
        except CheckpointError as error:
            if error.subject == str(downloaded.path):  # a bad one must not stay
                downloaded.path.unlink(missing_ok=True)
            raise
        downloaded.path.unlink(missing_ok=True)
    say(f"{info.name}, version {info.version}: {target}")
    return target


def _parse_sha256(text: str) -> str:
    """Returns a checksum in lower case; refuses what is none."""
    digest = text.strip().lower()
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise CheckpointError("--sha256", f"{text!r} is no SHA-256 of 64 hexadecimal digits")
    return digest


def _check_sha256(path: Path, expected: str | None) -> None:
    """Refuses a file of another checksum than the expected one, if there is one."""
    if expected is None:
        return
    digest = file_sha256(path)
    if digest != expected:
        raise CheckpointError(
            path, f"has SHA-256 {digest}, not {expected}: move it away to download the release"
        )


def convert(  # noqa: PLR0913 - options, by keyword
    source: Path | str,
    target: Path | str,
    variant: str | None = None,
    *,
    high_level_scales: int | None = None,
    ema: bool = False,
    labels: Sequence[str] | None = None,
    score_threshold: float = SCORE_THRESHOLD,
    half: bool = False,
    overwrite: bool = False,
) -> ModelInfo:
    """Converts an official checkpoint to a weights file of this project.

    Args:
        source: the official `.pth` file.
        target: the safetensors file to write.
        variant: the required variant, a name in `VARIANTS`; None to recognise it.
        high_level_scales: enc_scale, if neither the file nor `variant` gives it.
        ema: uses the averaged weights.
        labels: one class name per output; None for COCO's, if the network has 91 outputs.
        score_threshold: 0..1, the default of requests.
        half: stores float16 instead of float32.
        overwrite: replaces an existing target.

    Returns:
        The metadata of the new file.

    Raises:
        CheckpointError: if the source is refused or the target cannot be written.
        OutputError: if the target exists.
    """
    source, target = Path(source), Path(target)
    check_output_file(target, overwrite=overwrite, inputs=(source,), regular=True)
    if labels is not None:
        _check_labels(source, labels)
    official = load_official(source, variant, high_level_scales=high_level_scales, ema=ema)
    config = official.config
    if labels is None and config.num_classes != len(COCO_LABELS):
        raise CheckpointError(
            source,
            f"has {config.num_classes} classes, which are not COCO's: give their names (--labels)",
        )
    save_checkpoint(
        target,
        official.state_dict,
        config,
        COCO_LABELS if labels is None else labels,
        score_threshold=score_threshold,
        name=config.name,
        description=f"{_ORIGIN} {source.name}, SHA-256 {file_sha256(source)}",
        # The official code trains on category ids: an output's index is its id.
        category_ids=range(config.num_classes),
        half=half,
    )
    return read_model_info(target)


def _check_labels(source: Path, labels: Sequence[str]) -> None:
    """Refuses a name that two classes have: requests could not select one of them."""
    named = Counter(label for label in labels if label != NO_CLASS)
    twice = next((label for label, count in named.items() if count > 1), None)
    if twice is not None:
        raise CheckpointError(source, f"two of its classes would have the name {twice!r}")


def _is_from(target: Path, source_name: str) -> bool:
    """Whether a file was converted from a file of that name."""
    try:
        return read_model_info(target).description.startswith(f"{_ORIGIN} {source_name},")
    except CheckpointError:
        return False


def _is_pulled(target: Path, name: str, sha256: str | None) -> bool:
    """Whether a file can be read, is of the variant and, if given, from a file of the checksum."""
    try:
        info = read_model_info(target)
    except CheckpointError:
        return False
    from_it = sha256 is None or info.description.endswith(f"SHA-256 {sha256}")
    return info.config.name == name and from_it

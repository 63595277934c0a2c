"""`lite-detr data check`: what is wrong with a data set, and what is in it."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.failure import writing_to_stdout
from service.cli.options import documented_option

if TYPE_CHECKING:
    from model.data.data_sets import DataSet
    from model.data.survey import Survey

_EPILOG = """[bold]Examples[/]

  lite-detr data check my-data/
  lite-detr data check train.json --images train/
  lite-detr train --data my-data/ --output runs/mine

A data set is a folder in the layout of COCO (train.json and train/), YOLO (data.yaml, images/ and
labels/) or Pascal VOC (Annotations/ and JPEGImages/), a data.yaml, or a COCO JSON file.
"""
_SEEN_PIXELS = 8  # the stride of the finest level
_TRAINED_PIXELS = 2  # as in model.training.augment
_WIDEST_NAME = 24

data_app = typer.Typer(
    name="data",
    help="Check a data set before training on it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog=_EPILOG,
)


def register(app: typer.Typer) -> None:
    """Adds the commands to the program."""
    app.add_typer(data_app)


@data_app.callback()
def _data() -> None:
    """Check a data set before training on it."""


@data_app.command("check", epilog=_EPILOG)
def check(
    path: Annotated[Path, typer.Argument(metavar="DATA", help="The folder or file.")],
    *,
    images: Annotated[
        Path | None,
        documented_option(
            "--images",
            env_var="LITE_DETR_DATA_IMAGES",
            metavar="FOLDER",
            help="the folder that the file names of a COCO JSON file are relative to; unset: it "
            "is searched near the file",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        documented_option(
            "--json", env_var="LITE_DETR_DATA_JSON", help="print the statistics as a JSON object"
        ),
    ] = False,
) -> None:
    """Check annotations and images; print errors, oddities, class counts and box sizes.

    The exit status is 2 if the data cannot be used.
    """
    from model.data.errors import DataError  # noqa: PLC0415
    from model.data.survey import same_files, survey  # noqa: PLC0415

    opened, problems, warnings = _open_splits(path, images)
    if not opened and not problems:
        raise DataError(f"{path} has none of the splits train, val and test")
    problems += _refused_by_training(opened)
    surveys = {split: survey(data.truth, data.sizes) for split, data in opened.items()}
    pairs = same_files(list(opened.values()))
    shared = _shared_by_splits(opened)
    if as_json:
        report = _as_json(surveys, opened, problems)
        report["files_with_the_same_content"] = len(pairs)
        report["images_in_two_splits"] = {splits: len(files) for splits, files in shared.items()}
        lines = [json.dumps(report, indent=2)]
    else:
        lines = [_described(split, found, opened[split]) for split, found in surveys.items()]
        warnings += _warnings_about_files(shared, pairs)
        lines += [f"warning: {line}" for line in warnings]
    with writing_to_stdout():
        for line in lines:
            typer.echo(line)
    if problems:
        raise DataError("\n".join(dict.fromkeys(problems)))


def _open_splits(
    path: Path, images: Path | None
) -> tuple[dict[str, DataSet], list[str], list[str]]:
    """Opens the splits that there are; returns them, errors and warnings."""
    from model.data.data_sets import open_coco, open_data_set  # noqa: PLC0415
    from model.data.errors import AbsentSplit, DataError  # noqa: PLC0415

    opened: dict[str, DataSet] = {}
    problems: list[str] = []
    warnings: list[str] = []
    for split in ("train", "val", "test"):
        try:
            if images is not None:
                data = open_coco(path, images) if split == "train" else None
            else:
                data = open_data_set(path, split)
        except AbsentSplit as error:
            # Exports name a test folder that they do not have; training uses none.
            (warnings if split == "test" else problems).append(str(error))
            continue
        except DataError as error:
            problems.append(str(error))
            continue
        if data is not None:
            opened[split] = data
    return opened, problems, warnings


def _refused_by_training(opened: dict[str, DataSet]) -> list[str]:
    """Returns what `lite-detr train` refuses about splits that are right by themselves."""
    from model.data.errors import DataError  # noqa: PLC0415
    from model.data.splits import check_boxes_of_split, check_classes_of_split  # noqa: PLC0415

    train, val = opened.get("train"), opened.get("val")
    problems = []
    try:
        if train is not None:
            check_boxes_of_split(train, "learn from")
    except DataError as error:
        problems.append(str(error))
    try:
        if val is not None:
            check_boxes_of_split(val, "validate on")
        if val is not None and train is not None:
            check_classes_of_split(val, train.truth, train.subject)
    except DataError as error:
        problems.append(str(error))
    return problems


def _shared_by_splits(opened: dict[str, DataSet]) -> dict[str, list[str]]:
    """Returns the images that are in two splits, by their names, such as "train and val"."""
    from model.data.survey import shared_images  # noqa: PLC0415

    shared = {
        f"{first} and {second}": shared_images(opened[first], opened[second])
        for first, second in combinations(opened, 2)
    }
    return {splits: files for splits, files in shared.items() if files}


def _warnings_about_files(
    shared: dict[str, list[str]], pairs: list[tuple[Path, Path]]
) -> list[str]:
    """Returns warnings about images that are there twice.

    Args:
        shared: images in two splits, by the splits.
        pairs: of files with the same content.
    """
    warnings = []
    if shared:
        counts = ", ".join(f"{len(files)} in {splits}" for splits, files in shared.items())
        first = next(iter(shared.values()))[0]
        warnings.append(f"images in two splits: {counts}, the first: {first}")
    if pairs:
        warnings.append(
            f"{len(pairs)} image files have the content of another one, the first: "
            f"{pairs[0][0]} and {pairs[0][1]}"
        )
    return warnings


def _described(split: str, found: Survey, data: DataSet) -> str:
    """Returns the report of a split as text."""
    from model.training.recipe import LONG_RUN_MINUTES, facts_of, input_side  # noqa: PLC0415

    lines = [
        f"{split}: {data.subject}",
        f"  {found.images} images ({found.empty_images} without a box), {found.boxes} boxes, "
        f"{len(found.classes)} classes; at most {found.most_boxes} boxes on an image",
        "  image sizes: "
        + ", ".join(f"{size[0]:g} x {size[1]:g} ({n})" for size, n in found.image_sizes),
    ]
    if found.crowds:
        lines.append(f"  {found.crowds} crowds, which are not trained on")
    width = min(max((len(row.name) for row in found.classes), default=5), _WIDEST_NAME)
    lines.append(
        f"  {'class':<{width}}  {'boxes':>7}  {'images':>7}   shorter side in px (10 %, 50 %, 90 %)"
    )
    lines += [
        f"  {row.name[:width]:<{width}}  {row.boxes:>7}  {row.images:>7}   "
        + ", ".join(f"{side:.0f}" for side in row.sides)
        for row in found.classes
    ]
    if found.boxes:
        facts = facts_of(data.truth, data.sizes)
        side = input_side(facts, is_long=False)
        pixels = facts.small_box * side
        larger = input_side(facts, is_long=True)
        also = f"; {larger} px in runs of {LONG_RUN_MINUTES:.0f} minutes and more"
        chosen = f"{side} px, chosen for these boxes{also * (larger > side)}"
        lines.append(
            f"  at the network's input ({chosen}), 10 % of the smallest class are narrower than "
            f"{pixels:.0f} px"
        )
        if pixels < _SEEN_PIXELS:
            lines.append(
                f"  warning: boxes below {_SEEN_PIXELS} px are hard to find, those below "
                f"{_TRAINED_PIXELS} px are not trained on: cut the images into tiles, or train "
                "with a larger --input-side"
            )
    if found.repeated_boxes:
        lines.append(
            f"  warning: {found.repeated_boxes} boxes nearly cover another one of their class, "
            f"the first on {found.first_repeated}"
        )
    if data.findings.has_oddities:
        lines += ["  " + line for line in data.findings.report(data.subject).splitlines()[1:]]
    return "\n".join(lines)


def _as_json(
    surveys: dict[str, Survey], opened: dict[str, DataSet], problems: list[str]
) -> dict[str, Any]:
    """Returns the report as plain JSON values."""
    return {
        "splits": {
            split: {
                **asdict(found),
                "subject": str(opened[split].subject),
                "oddities": opened[split].findings.report(split).splitlines()[1:],
            }
            for split, found in surveys.items()
        },
        "errors": problems,
    }

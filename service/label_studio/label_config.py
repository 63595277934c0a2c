"""A project's labelling configuration (XML) -> where rectangles go, and what labels are called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from xml.etree import ElementTree

from service.errors import InvalidOptions, short_repr

_MAX_CHARACTERS = 262_144
_MAX_ELEMENTS = 20_000
_DECLARATION = re.compile(r"<!(DOCTYPE|ENTITY)", re.IGNORECASE)
_FIELD = re.compile(r"\$(\w+)")
_SEPARATORS = re.compile(r"[\s_-]+")
_MOST_NAMES = 20  # in an error message
_CACHED = 16


@dataclass(frozen=True)
class Rectangles:
    """The rectangle labels of an image.

    Attributes:
        from_name: of the tag `RectangleLabels`.
        to_name: of the tag `Image`.
        field: of a task's data, which has the image.
        labels: of the project, by the model's class name; other classes are left out.
    """

    from_name: str
    to_name: str
    field: str
    labels: Mapping[str, str]


@lru_cache(maxsize=_CACHED)
def read_label_config(text: str, class_names: tuple[str, ...]) -> Rectangles:
    """Reads a labelling configuration.

    A class gets the label that lists it in `predicted_values`, otherwise the label of its name;
    capitals, spaces, hyphens and underscores make no difference. A label with an `alias` is found
    by both names, and results have the alias.

    Args:
        text: XML.
        class_names: of the model.

    Raises:
        InvalidOptions: for a configuration without rectangle labels of an image, or without a
            label for any class.
    """
    root = _parse(text)
    elements = list(root.iter())
    if len(elements) > _MAX_ELEMENTS:
        raise InvalidOptions(f"label_config has more than {_MAX_ELEMENTS} tags")
    images = {each.get("name"): each.get("value", "") for each in elements if each.tag == "Image"}
    controls = [each for each in elements if each.tag == "RectangleLabels"]
    controls = [each for each in controls if each.get("toName") in images and each.get("name")]
    if not controls:
        raise InvalidOptions(
            "label_config has no RectangleLabels for an Image: the service predicts rectangles only"
        )
    found = [(each, _labels(each, class_names)) for each in controls]
    control, labels = max(found, key=lambda each: len(each[1]))
    if not labels:
        names = [label.names[0] for each in controls for label in _given(each)]
        raise InvalidOptions(
            f"no class of the model is a label of label_config: the model has "
            f"{_listed(class_names)}; the labels are {_listed(names)}. Rename labels, or list "
            "classes in their predicted_values"
        )
    to_name = control.get("toName", "")
    field = _FIELD.fullmatch(images[to_name].strip())
    if field is None:
        raise InvalidOptions(
            f"the value of the Image {short_repr(to_name)} is {short_repr(images[to_name])}; it "
            "takes a field of the task, such as $image"
        )
    return Rectangles(control.get("name", ""), to_name, field[1], labels)


def _parse(text: str) -> ElementTree.Element:
    if len(text) > _MAX_CHARACTERS:
        raise InvalidOptions(f"label_config is longer than {_MAX_CHARACTERS} characters")
    if _DECLARATION.search(text):
        raise InvalidOptions("label_config has a DOCTYPE or an ENTITY, which is not accepted")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise InvalidOptions(f"label_config is not XML: {error}") from None


class _Label(NamedTuple):
    """A tag `Label`."""

    names: list[str]  # its value and alias, those that it has
    listed: list[str]  # class names

    @property
    def result(self) -> str:
        """The label of results."""
        return self.names[-1]


def _given(control: ElementTree.Element) -> Iterable[_Label]:
    """The labels of a tag."""
    for label in control.iter("Label"):
        names = [name for name in (label.get("value"), label.get("alias")) if name]
        if names:
            listed = label.get("predicted_values", "").split(",")
            yield _Label(names, [name.strip() for name in listed if name.strip()])


def _labels(control: ElementTree.Element, class_names: tuple[str, ...]) -> dict[str, str]:
    given = list(_given(control))[::-1]
    by_name = {_plain(name): label.result for label in given for name in label.names}
    by_list = {_plain(name): label.result for label in given for name in label.listed}
    chosen = {name: by_list.get(_plain(name)) or by_name.get(_plain(name)) for name in class_names}
    return {name: label for name, label in chosen.items() if label is not None}


def _plain(name: str) -> str:
    return _SEPARATORS.sub(" ", name.strip()).casefold()


def _listed(names: Iterable[str]) -> str:
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more if names else "none"

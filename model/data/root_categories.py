"""Categories that only group others, as exports of Roboflow have one at the start of their list.

`[{"id": 0, "name": "animals", "supercategory": "none"}, {"id": 1, "name": "cat",
"supercategory": "animals"}]`: nothing is annotated as animals. As a class it would be an output of
the model that never finds anything, or have the name of another class.
"""

from __future__ import annotations

from typing import Any

from model.data.findings import Findings

_NO_SUPERCATEGORY = (None, "", "none")


def drop_root_categories(document: dict[str, Any], findings: Findings) -> None:
    """Removes categories without annotations that are the supercategory of another one.

    A category with a supercategory of its own stays. The annotations of one split may lack a class:
    classes that group no others stay, too.

    Args:
        document: of COCO, before it is checked; its list of categories is replaced.
        findings: gets an oddity for each.
    """
    entries = document["categories"]
    groups = {
        entry["supercategory"]
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("supercategory"), str)
    }.difference(_NO_SUPERCATEGORY)
    annotated = {
        entry["category_id"]
        for entry in document["annotations"]
        if isinstance(entry, dict) and isinstance(entry.get("category_id"), int | float)
    }
    kept = [entry for entry in entries if not _is_empty_root(entry, groups, annotated)]
    for entry in entries:
        if _is_empty_root(entry, groups, annotated):
            findings.oddity(
                "categories that only group others, without a box (left out)",
                f"id {entry['id']}: {entry['name']!r}",
            )
    document["categories"] = kept


def _is_empty_root(entry: object, groups: set[str], annotated: set[float]) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and entry["name"] in groups
        and entry.get("supercategory") in _NO_SUPERCATEGORY
        and isinstance(entry.get("id"), int | float)
        and entry["id"] not in annotated
    )

"""Findings in a data set: how often each kind of error or oddity occurs, and the first of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class _Kind:
    """One kind of finding."""

    first: str
    count: int = 0


class Findings:
    """Counts errors, which stop a command, and oddities, which it only reports.

    Each kind is a phrase such as "annotations without bbox".
    """

    def __init__(self) -> None:
        """Starts without findings."""
        self._errors: dict[str, _Kind] = {}
        self._oddities: dict[str, _Kind] = {}

    def error(self, kind: str, first: str, count: int = 1) -> None:
        """Counts an error; `first` describes it, and is kept if it is the first of its kind."""
        self._errors.setdefault(kind, _Kind(first)).count += count

    def oddity(self, kind: str, first: str) -> None:
        """Counts an oddity; see `error`."""
        self._oddities.setdefault(kind, _Kind(first)).count += 1

    @property
    def has_errors(self) -> bool:
        """Whether there is an error."""
        return bool(self._errors)

    @property
    def has_oddities(self) -> bool:
        """Whether there is an oddity."""
        return bool(self._oddities)

    def report(self, subject: object) -> str:
        """Returns a report with one line per kind, after a line about all.

        Args:
            subject: what was checked, for the first line.
        """
        verdict = "cannot be used" if self._errors else "has oddities"
        lines = [f"{subject} {verdict}:"]
        for word, kinds in (("error", self._errors), ("warning", self._oddities)):
            lines += [
                f"  {word}: {kind}: {each.count}, the first: {each.first}"
                for kind, each in kinds.items()
            ]
        return "\n".join(lines)

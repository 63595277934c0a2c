"""Errors of data sets and of output files."""

from __future__ import annotations


class DataError(ValueError):
    """Annotations or image files that cannot be used; the message names the file and the cause."""


class AbsentSplit(DataError):
    """A split that a data set names but does not contain."""


class OutputError(ValueError):
    """An output that cannot be written without losing another file; the message names it."""

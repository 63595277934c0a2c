"""Errors that end a run."""

from __future__ import annotations


class TrainingFailed(RuntimeError):
    """Training cannot continue; the message names the cause."""


class ProcessLost(RuntimeError):
    """Another process of the run has ended or cannot be reached."""

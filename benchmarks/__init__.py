"""Measurements of accuracy and speed, run by hand: `python -m benchmarks.FOLDER.MODULE`."""

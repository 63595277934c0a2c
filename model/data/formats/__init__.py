"""Formats of annotated data sets: each module reads one into a COCO document.

A new format is one module with a `DataFormat` and one entry in `model.data.data_sets.FORMATS`.
"""

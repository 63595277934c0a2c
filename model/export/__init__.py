"""Exported networks: files that other runtimes load, each checked against the network it is from.

weights file -> `load_detector` -> `ExportedNetwork` -> a format of `formats` -> `parity`
"""

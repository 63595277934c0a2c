"""Annotated images on disk, as training and evaluation read them (torch-free)."""

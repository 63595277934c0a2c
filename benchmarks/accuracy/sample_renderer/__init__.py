"""Renders photos of flat prints with codes on objects, under a lamp, with a pinhole camera."""

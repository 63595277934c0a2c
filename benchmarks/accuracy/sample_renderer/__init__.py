"""A small photo studio: flat prints with codes, put on things, under a lamp, before a camera."""

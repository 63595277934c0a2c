"""Synthetic pictures of printed codes for training a detector."""

from model.training.codes.scene import Scene, generate_scene
from model.training.codes.symbols import CLASS_NAMES

__all__ = ["CLASS_NAMES", "Scene", "generate_scene"]

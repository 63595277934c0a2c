"""Generator of training images of printed codes (in a source checkout only)."""

from model.training.codes.scene import Scene, generate_scene
from model.training.codes.symbols import CLASS_NAMES

__all__ = ["CLASS_NAMES", "Scene", "generate_scene"]

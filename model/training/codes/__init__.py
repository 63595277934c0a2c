"""Generator of training images of printed codes (in a source checkout only)."""

from model.training.codes.editions import EDITIONS, generate_scene
from model.training.codes.scene import Scene
from model.training.codes.symbols import CLASS_NAMES

__all__ = ["CLASS_NAMES", "EDITIONS", "Scene", "generate_scene"]

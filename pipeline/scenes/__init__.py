"""Drawn streets and landscapes with pixel-exact labels."""

from pipeline.scenes.canvas import CLASSES
from pipeline.scenes.scene import draw_scene, numbered_scene, scene_generator

__all__ = ["CLASSES", "draw_scene", "numbered_scene", "scene_generator"]

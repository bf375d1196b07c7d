"""Drawn streets and landscapes with pixel-exact labels; `python -m demo.draw` writes them."""

from demo.draw.canvas import CLASSES
from demo.draw.scene import draw_scene, numbered_scene, scene_generator

__all__ = ["CLASSES", "draw_scene", "numbered_scene", "scene_generator"]

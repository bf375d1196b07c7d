"""Naming: what the values of label maps mean, and their colours."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.drawing.colours import class_colours, colour, palette

NO_CLASS = 255  # label value of pixels without a class


class Naming(NamedTuple):
    """Meaning and colours of label values.

    Attributes:
        values: ``(K,)``, the label value of each cluster; uint8, or uint16 for many clusters
            without names. `NO_CLASS` means no class.
        colours: uint8 ``(n, 3)`` by label value; the last one, of classes, means no class.
        classes: names by label value; empty where label values are the ids of clusters.
    """

    values: np.ndarray
    colours: np.ndarray
    classes: list[str]

    @property
    def png_colours(self) -> np.ndarray:
        """Colours of all 8-bit label values, uint8 ``(256, 3)``."""
        return colour(np.arange(NO_CLASS + 1), self.colours)


def cluster_naming(k: int) -> Naming:
    """Let label values be the ids of K clusters."""
    return Naming(np.arange(k, dtype=np.uint8 if k <= 256 else np.uint16), palette(k), [])


def class_naming(mapping: np.ndarray, classes: list[str]) -> Naming:
    """Let label values be the classes ``(K,)`` of clusters; -1 and `NO_CLASS` are none."""
    values = np.where(mapping < 0, NO_CLASS, mapping).astype(np.uint8)
    return Naming(values, class_colours(len(classes)), classes)

"""Labels at the patch grid of a tile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.maps.atlas import shrink

POINTS = 8  # along the side of a patch, at which its pixels are counted
VALUES = 256


def patch_labels(label: np.ndarray, tile: Mapping[str, Any] | np.void) -> np.ndarray:
    """Give each patch of a tile the most frequent value of its pixels: uint8 ``(patches,)``.

    Args:
        label: uint8 ``(H, W)`` of the whole photo, at any resolution.
        tile: its row in the table of tiles: the window in the resized photo, in px.
    """
    resized = shrink(label, int(tile["resized_h"]), int(tile["resized_w"]))
    top, left = int(tile["top"]), int(tile["left"])
    cut = resized[top : top + int(tile["height"]), left : left + int(tile["width"])]
    rows, columns = int(tile["grid_h"]), int(tile["grid_w"])
    points = shrink(cut[:, ::-1] if tile["flip"] else cut, POINTS * rows, POINTS * columns)
    by_patch = points.reshape(rows, POINTS, columns, POINTS).swapaxes(1, 2).reshape(-1, POINTS**2)
    flat = np.arange(rows * columns)[:, None] * VALUES + by_patch
    counts = np.bincount(flat.ravel(), minlength=rows * columns * VALUES)
    return counts.reshape(-1, VALUES).argmax(axis=1).astype(np.uint8)

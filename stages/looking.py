"""What a protocol of evaluation sees of images and labels: all of them, or their centre."""

from __future__ import annotations

import numpy as np

from cache.images import read_image, resize
from cache.index import ImageRow
from pipeline.features.tiles import centre_box, fitted_shape


def read_seen(row: ImageRow, short_side: int | None, crop: int | None) -> np.ndarray:
    """The pixels that a protocol scores of an image.

    Args:
        short_side, crop: px, what it is resized to and what is cut out; a crop of None is all.

    Returns:
        uint8 ``(height, width, 3)``; errors as `read_image`.
    """
    image = read_image(row.path, sha256=row.sha256, white=row.white)
    if crop is None or short_side is None:
        return image
    new_h, new_w = fitted_shape(row.height, row.width, short_side)
    top, left, height, width = centre_box(new_h, new_w, crop)
    return resize(image, new_h, new_w)[top : top + height, left : left + width]


def seen_label(label: np.ndarray, short_side: int | None, crop: int | None) -> np.ndarray:
    """The part of a label ``(height, width)`` that a protocol scores, resized by nearest pixels."""
    if crop is None or short_side is None:
        return label
    old_h, old_w = label.shape
    new_h, new_w = fitted_shape(old_h, old_w, short_side)
    top, left, height, width = centre_box(new_h, new_w, crop)
    rows = ((np.arange(top, top + height) + 0.5) * old_h / new_h).astype(int)
    columns = ((np.arange(left, left + width) + 0.5) * old_w / new_w).astype(int)
    return label[np.ix_(rows, columns)]

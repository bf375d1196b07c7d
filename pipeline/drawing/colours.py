"""Colours for label maps and eigenfunctions: arrays in, 8-bit RGB out."""

from __future__ import annotations

import numpy as np

OPACITY = 0.6  # of colours over a photo
NEUTRAL = (150, 150, 150)
_LEVELS = 16  # steps per channel of the RGB grid that palette colours are chosen from
# Linear RGB as seen without red, and without green, cones (Machado et al. 2009, severity 1).
_CONE_LACKING = np.array(
    [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]],
    ]
)  # fmt: skip
_DIVERGING = np.array(
    [(33, 84, 148), (103, 159, 206), (247, 246, 243), (232, 140, 95), (165, 35, 38)]
)


def palette(n: int) -> np.ndarray:
    """Well separated colours, the same on every call; the first ones don't depend on ``n``.

    Greedy farthest points in CIELAB among colours of medium lightness, away from greys, which are
    left to mean "no class". How far two are apart is the least of what people see with all cones
    and, twice that, without red or without green ones. Colours repeat beyond about 2,000.

    Returns:
        uint8 ``(n, 3)``.
    """
    axis = np.linspace(0, 255, _LEVELS).round()
    rgb = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _lab(rgb)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    fit = (lab[:, 0] > 30) & (lab[:, 0] < 88) & (chroma > 22) & (chroma < 82)
    rgb, lab = rgb[fit], lab[fit]
    views = [lab, *(_lab(_without_cone(rgb, matrix)) for matrix in _CONE_LACKING)]
    grey = np.array([NEUTRAL], dtype=float)
    order = [int(np.argmin(np.abs(rgb - (51, 119, 187)).sum(axis=1)))]
    distance = np.linalg.norm(lab - _lab(grey), axis=1)
    while len(order) < min(n, len(rgb)):
        apart = [
            weight * np.linalg.norm(view - view[order[-1]], axis=1)
            for view, weight in zip(views, (1, 2, 2), strict=True)
        ]
        distance = np.minimum(distance, np.min(apart, axis=0))
        order.append(int(distance.argmax()))
    return rgb[np.resize(order, n)].astype(np.uint8)


def _without_cone(rgb: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """sRGB ``(n, 3)`` in 0..255 as who lacks a cone sees it."""
    value = rgb / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ matrix.T, 0, 1)
    return 255.0 * np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)


def _lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB ``(n, 3)`` in 0..255 to CIELAB (D65), where Euclidean distance is what the eye sees."""
    value = rgb / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array(
        [[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]]
    )
    ratio = xyz / np.array([0.9505, 1.0, 1.089])
    root = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def class_colours(n_classes: int) -> np.ndarray:
    """Colours of the classes and, last, the grey of pixels that have none.

    Returns:
        uint8 ``(n_classes + 1, 3)``; index -1 (unmatched) gives the grey.
    """
    return np.concatenate([palette(n_classes), np.array([NEUTRAL], dtype=np.uint8)])


def colour(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Colour a label map; labels beyond the palette (255 = ignore) get its last colour.

    Args:
        labels: integers ``(H, W)``, -1 for none.
        palette: uint8 ``(n, 3)``.

    Returns:
        uint8 ``(H, W, 3)``.
    """
    return palette[np.minimum(labels.astype(np.int64), len(palette) - 1)]


def eigenfunction_image(values: np.ndarray) -> np.ndarray:
    """Show one eigenfunction: below its median blue, above it red.

    The colours span the 99th percentile of the distance from the median, so that a few extreme
    patches don't wash out the others.

    Args:
        values: float ``(h, w)``, any unit.

    Returns:
        uint8 ``(h, w, 3)``.
    """
    centred = values.astype(np.float64) - np.median(values)
    span = np.percentile(np.abs(centred), 99)
    unit = np.clip(centred / span if span > 0 else np.zeros_like(centred), -1, 1)
    anchors = np.linspace(-1, 1, len(_DIVERGING))
    channels = [np.interp(unit, anchors, _DIVERGING[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def blend(image: np.ndarray, colours: np.ndarray, alpha: float) -> np.ndarray:
    """Lay colours over an image: ``(1 - alpha) * image + alpha * colours``.

    Args:
        image: uint8 ``(H, W, 3)``.
        colours: uint8 ``(H, W, 3)``.
        alpha: weight of the colours, in 0..1.

    Returns:
        uint8 ``(H, W, 3)``.

    Raises:
        ValueError: the two differ in size.
    """
    if image.shape != colours.shape:
        raise ValueError(
            f"an image and its colours must have one shape, found {image.shape} and "
            f"{colours.shape}: the label map is of another version of the image, make it again."
        )
    mixed = (1.0 - alpha) * image.astype(np.float32) + alpha * colours.astype(np.float32)
    return mixed.round().astype(np.uint8)


def overlay(
    image: np.ndarray, labels: np.ndarray, palette: np.ndarray, alpha: float, rows: int = 256
) -> np.ndarray:
    """`blend` an image with its `colour`-ed label map, so many rows at a time to save memory.

    Args:
        image: uint8 ``(H, W, 3)``.
        labels: integers ``(H, W)``, -1 for none.
        palette: uint8 ``(n, 3)``.
        alpha: weight of the colours, in 0..1.

    Returns:
        uint8 ``(H, W, 3)``.

    Raises:
        ValueError: the two differ in size.
    """
    if image.shape[:2] != labels.shape:
        return blend(image, colour(labels, palette), alpha)  # which raises
    out = np.empty_like(image)
    for top in range(0, len(image), rows):
        band = slice(top, top + rows)
        out[band] = blend(image[band], colour(labels[band], palette), alpha)
    return out

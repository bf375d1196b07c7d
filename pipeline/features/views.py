"""Views of an image to train on: at another scale, cropped, mirrored, in other colours.

Everything is drawn from a generator that follows from a seed, the content of the image and the
number of the view, so that whoever needs a view again makes the same one. No label is looked at.
"""

from __future__ import annotations

import numpy as np

BRIGHTNESS = 32 / 255  # greatest shift of all colours; the other three scale or turn them
CONTRAST = SATURATION = 0.5  # factors from 1 - this to 1 + this
HUE = 36.0  # degrees; the program's 18 are steps of 2 degrees


def view_generator(seed: int, sha256: str, view: int, colours: bool) -> np.random.Generator:
    """The source of all that is drawn for one view: of its place, or of its colours.

    Args:
        seed: of all views.
        sha256: of the image, hexadecimal.
        view: its number.
    """
    return np.random.default_rng([seed, int(sha256[:16], 16), view, int(colours)])


def distort(pixels: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Distort colours as the program does: brightness, contrast, saturation and hue at random.

    Each is changed in half of all calls; contrast comes before the other two or after them.

    Args:
        pixels: float32 ``(3, height, width)`` in [0, 1].
        strength: multiplies the greatest change of each, 0 to 2; 1 is the program's.

    Returns:
        float32 of the same shape, in [0, 1].
    """
    changed = generator.random(4) < 0.5
    shift, contrast, saturation, turn = np.float32(strength) * np.float32(
        generator.uniform(-1, 1, 4) * [BRIGHTNESS, CONTRAST, SATURATION, HUE]
    ) * changed  # fmt: skip
    contrast_first = generator.random() < 0.5
    values = np.clip(pixels + shift, 0, 1)
    if contrast_first:
        values = np.clip(values * (1 + contrast), 0, 1)
    values = turn_hue(saturate(values, 1 + saturation), turn)
    if not contrast_first:
        values = np.clip(values * (1 + contrast), 0, 1)
    return values.astype(np.float32)


def saturate(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Multiply the saturation of HSV, at most to 1; hue and value stay.

    Args:
        pixels: float32 ``(3, ...)`` in [0, 1].
        factor: at least 0.
    """
    value, chroma = pixels.max(axis=0), np.ptp(pixels, axis=0)
    # value / chroma is what brings the saturation to 1; a grey has none to multiply.
    most = np.divide(value, chroma, out=np.ones_like(value), where=chroma > 0)
    return value - (value - pixels) * np.minimum(factor, most)


def turn_hue(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """Turn the hue of HSV; saturation and value stay.

    Args:
        pixels: float32 ``(3, ...)`` in [0, 1].
    """
    red, green, blue = pixels
    value, chroma = pixels.max(axis=0), np.ptp(pixels, axis=0)
    some = np.where(chroma > 0, chroma, 1)
    sixths = np.select(
        [value == red, value == green],
        [(green - blue) / some, 2 + (blue - red) / some],
        4 + (red - green) / some,
    )
    # Each channel falls from the value by the chroma, as far as its own hue is away from this one.
    away = (np.stack([sixths + 5, sixths + 3, sixths + 1]) + degrees / 60) % 6
    return value - chroma * np.clip(np.minimum(away, 4 - away), 0, 1)

"""From a painted canvas to a photo and its labels."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from demo.draw.canvas import SCALE, Canvas, mix, noise, smooth, tint


def vote(labels: np.ndarray) -> np.ndarray:
    """One label per pixel, uint8: that of most of its samples; ties go to the thinner class."""
    parts = [labels[row::SCALE, column::SCALE] for row in range(SCALE) for column in range(SCALE)]
    votes = (sum((part == other).astype(np.uint8) for other in parts) for part in parts)
    ranks = [16 * count + part for count, part in zip(votes, parts, strict=True)]
    return (np.maximum.reduce(ranks) % 16).astype(np.uint8)


def develop(canvas: Canvas, generator: np.random.Generator) -> np.ndarray:
    """The photo of a canvas: rain, exposure, vignette, film, lens blur, noise.

    Returns:
        uint8 ``(height, width, 3)`` sRGB, a pixel for SCALE x SCALE samples.
    """
    samples = [canvas.colour[:, a::SCALE, b::SCALE] for a in range(SCALE) for b in range(SCALE)]
    colour = np.add.reduce(samples) / np.float32(SCALE**2)
    height, width = colour.shape[1:]
    y, x = np.ogrid[0.0:height, 0.0:width]
    light = canvas.light
    if light.rain:
        streak = np.clip(noise((x + 0.18 * y) / 1.6, y / 26 + 7, octaves=2) - 0.55, 0, 1)
        colour = mix(colour, light.horizon, 0.5 * streak)
    cast = tint(*generator.normal(1.0, 0.035, 3))
    exposure = generator.uniform(0.85, 1.2) * 0.62 / max(float(np.mean(colour)), 0.12) ** 0.55
    away = (x / width - 0.5) ** 2 + (y / height - 0.5) ** 2
    colour = colour * cast * (-1.5 * exposure * (1 - 0.45 * away)).astype(np.float32)
    colour = (1 - np.exp(np.minimum(colour, 0))) ** np.float32(1 / 2.2)
    colour = (0.65 * colour + 0.35 * smooth(0.0, 1.0, colour)) * 255  # a film's contrast
    soft = Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy())
    soft = soft.filter(ImageFilter.GaussianBlur(generator.uniform(0.1, 0.45)))
    grain = generator.standard_normal((height, width, 3), np.float32)
    grain = generator.uniform(0.6, 1.6) * (grain + grain[..., 1:2])  # more light than hue
    return np.clip(np.asarray(soft) + grain + 0.5, 0, 255).astype(np.uint8)

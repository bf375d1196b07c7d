"""Views of an image to train on: at another scale, cropped, mirrored, in other colours.

All draws follow from a seed, the content of the image and the number of the view, so that every
worker makes the same view. No label is looked at.
"""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms.v2 import functional as colours

CHANGES = (  # of colours: function, argument that changes nothing, greatest change of it
    (colours.adjust_brightness, 1.0, 32 / 255),
    (colours.adjust_contrast, 1.0, 0.5),
    (colours.adjust_saturation, 1.0, 0.5),
    (colours.adjust_hue, 0.0, 0.1),  # of the circle: the program's 18 are steps of 2 degrees
)


def view_generator(seed: int, sha256: str, view: int, colours: bool) -> np.random.Generator:
    """Make the generator of a view's place, or of its colours.

    Args:
        seed: of all views.
        sha256: of the image, hexadecimal.
        view: its number.
    """
    return np.random.default_rng([seed, int(sha256[:16], 16), view, int(colours)])


def distort(pixels: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue at random, each in half of all calls.

    Probabilities, order (contrast before saturation and hue, or after them) and ranges are those
    of the program's photometric distortion, the changes torchvision's. The program adds to the
    colours for brightness, multiplies them for contrast, and multiplies the saturation of HSV;
    torchvision multiplies for brightness, and for contrast and saturation mixes with the mean grey
    of the image and with the grey of each pixel.

    Args:
        pixels: float32 ``(3, height, width)`` in [0, 1].
        strength: multiplies the greatest change of each, 0 to 2; 1 is the program's.

    Returns:
        float32 of the same shape, in [0, 1].
    """
    drawn = generator.random(4) < 0.5
    amounts = strength * generator.uniform(-1, 1, 4)
    order = (0, 1, 2, 3) if generator.random() < 0.5 else (0, 2, 3, 1)
    image = torch.from_numpy(pixels)
    for number in order:
        if drawn[number]:
            adjust, neutral, greatest = CHANGES[number]
            image = adjust(image, neutral + greatest * float(amounts[number]))
    return image.numpy()

"""Views of an image to train on: at another scale, cropped, mirrored, in other colours.

All draws follow from a seed, the content of the image and the number of the view, so that every
worker makes the same view. No label is looked at.
"""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms.v2 import functional as colours

from pipeline.features.tiles import Tile, plan_tiles

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


def plan_view(
    height: int,
    width: int,
    *,
    patch: int,
    short_side: int,
    scale: tuple[float, float] | None,
    crop: int | None,
    flip: bool,
    max_patches: int,
    generator: np.random.Generator,
) -> list[Tile]:
    """The tiles of one view of an image of ``height`` x ``width`` pixels.

    A view is one tile; without a crop one of more than ``max_patches`` patches is cut as
    `plan_tiles` cuts it.

    Args:
        short_side: of the resized image at scale 1, px.
        scale: least and greatest factor of it, drawn uniformly; None = 1.
        crop: side of a square that is cut out anywhere, px, rounded down to whole patches and cut
            off where the resized image is smaller; None = all of it.
        flip: mirror every other view.

    Raises:
        ValueError: the crop or the smallest short side is smaller than a patch.
    """
    factor = float(generator.uniform(*scale)) if scale else 1.0
    mirrored = flip and bool(generator.random() < 0.5)
    if crop is not None and crop < patch:
        raise ValueError(f"a crop must be at least one patch ({patch} px), found {crop} px")
    most = max_patches if crop is None else height * width * 10**6  # of a crop, what it is cut from
    tiles = plan_tiles(
        height, width, patch=patch, short_side=short_side, window=None, stride=None,
        max_patches=most, scale=factor, flip=mirrored,
    )  # fmt: skip
    if crop is None:
        return tiles
    (whole,) = tiles
    sides = [min(crop // patch * patch, side) for side in (whole.height, whole.width)]
    top = int(generator.integers(whole.height - sides[0] + 1))
    left = int(generator.integers(whole.width - sides[1] + 1))
    return [whole._replace(top=top, left=left, height=sides[0], width=sides[1])]


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

"""Geometry: how an image is resized, cropped, cut into tiles, and brought back to its own size.

A `Geometry` says so for any image, and `plan` turns it into the `Plan` of one image. A plan cuts
the image and its label, and `pipeline.maps.upsampling` turns the scores of its tiles into a label
map. A box is ``(top, left, height, width)`` in pixels of the resized image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Box = tuple[int, int, int, int]


class Geometry(NamedTuple):
    """A way to look at images; lengths in pixels of the resized image.

    Attributes:
        patch: side of a patch of the ViT.
        short_side: length that the short side is resized to; the aspect is kept.
        crop: side of the central square that alone is seen and scored; None = the whole image.
        window, stride: side of sliding windows, and the step between them; None = one tile.
        aligned: sides, windows and strides are rounded to whole patches, and an image of more than
            ``most`` patches is cut into windows that overlap by a third. Otherwise lengths are
            those of mmsegmentation, and `tile_pixels` rounds each tile to whole patches.
        most: patches of an aligned tile.
    """

    patch: int
    short_side: int
    crop: int | None = None
    window: int | None = None
    stride: int | None = None
    aligned: bool = True
    most: int = 8192


class Plan(NamedTuple):
    """Places of the tiles of one image, and the size of its label map.

    Attributes:
        patch: side of a patch, px.
        resized: height and width of the resized image, px.
        box: the part of the resized image that is seen and scored.
        tiles: boxes that cover it; a whole image is one tile.
        canvas: height and width at which overlapping tiles are averaged, px.
        size: height and width of the label map, px.
        flip: the tiles are mirrored from left to right after they are cut.
    """

    patch: int
    resized: tuple[int, int]
    box: Box
    tiles: list[Box]
    canvas: tuple[int, int]
    size: tuple[int, int]
    flip: bool = False

    def grids(self) -> list[tuple[int, int]]:
        """Rows and columns of patches of every tile."""
        return [grid(tile, self.patch) for tile in self.tiles]

    def cut(self, image: np.ndarray) -> np.ndarray:
        """Return the pixels that the label map covers: uint8 ``(*size, 3)`` of ``(H, W, 3)``."""
        if self.size == image.shape[:2]:
            return image
        top, left, height, width = self.box
        return resize(image, *self.resized)[top : top + height, left : left + width]

    def cut_label(self, label: np.ndarray) -> np.ndarray:
        """Return the part of a label ``(H, W)`` that the label map covers, by nearest pixels."""
        if self.size == label.shape:
            return label
        top, left, height, width = self.box
        rows, columns = (
            ((np.arange(first, first + length) + 0.5) * side / resized).astype(int)
            for first, length, side, resized in (
                (top, height, label.shape[0], self.resized[0]),
                (left, width, label.shape[1], self.resized[1]),
            )
        )
        return label[np.ix_(rows, columns)]

    def tile_pixels(self, image: np.ndarray) -> list[Tensor]:
        """Cut all tiles out of an image uint8 ``(H, W, 3)``; see the function `tile_pixels`."""
        resized = resize(image, *self.resized)
        return [tile_pixels(resized, tile, self.patch, self.flip) for tile in self.tiles]

    @property
    def windows(self) -> list[Box]:
        """The tiles as boxes in the canvas."""
        return [(0, 0, *self.canvas)] if self.tiles == [self.box] else self.tiles


def plan(geometry: Geometry, height: int, width: int) -> Plan:
    """Plan an image of ``height`` x ``width`` pixels.

    Raises:
        ValueError: the short side, the window or the stride is smaller than a patch.
    """
    patch, size = geometry.patch, (height, width)
    resized = _resized(height, width, geometry)
    whole = (0, 0, *resized)
    if geometry.crop:
        box = centre_box(*resized, geometry.crop)
        return Plan(patch, resized, box, [box], box[2:], box[2:])
    sides = _window(resized, geometry)
    if sides is None:
        return Plan(patch, resized, whole, [whole], size, size)
    return Plan(patch, resized, whole, place_windows(*resized, *sides), resized, size)


def plan_view(
    geometry: Geometry,
    height: int,
    width: int,
    *,
    scale: tuple[float, float] | None,
    crop: int | None,
    flip: bool,
    generator: np.random.Generator,
) -> Plan:
    """Plan one random view of an image, to train on. No label is looked at.

    Args:
        geometry: aligned, without crop and windows; its short side is that at scale 1.
        scale: least and greatest factor of the short side, drawn uniformly; None = 1.
        crop: side of a square that is cut out anywhere, px, rounded down to whole patches and cut
            off where the resized image is smaller; None = all of it.
        flip: mirror every other view.

    Raises:
        ValueError: the crop or the smallest short side is smaller than a patch.
    """
    patch = geometry.patch
    factor = float(generator.uniform(*scale)) if scale else 1.0
    mirrored = flip and bool(generator.random() < 0.5)
    if crop is not None and crop < patch:
        raise ValueError(f"a crop must be at least one patch ({patch} px), found {crop} px")
    scaled = geometry._replace(short_side=round(geometry.short_side * factor))
    if crop is None:
        return plan(scaled, height, width)._replace(flip=mirrored)
    resized = _resized(height, width, scaled)
    tall, wide = (min(crop // patch * patch, side) for side in resized)
    top = int(generator.integers(resized[0] - tall + 1))
    left = int(generator.integers(resized[1] - wide + 1))
    box = (top, left, tall, wide)
    return Plan(patch, resized, box, [box], box[2:], box[2:], mirrored)


def plan_resized_crop(
    geometry: Geometry,
    height: int,
    width: int,
    *,
    area: tuple[float, float],
    crop: int,
    flip: bool,
    generator: np.random.Generator,
) -> Plan:
    """Plan a view of an image as torchvision's random resized crop, to train on.

    Args:
        area: least and greatest share of the image that is cut out, at an aspect of 3/4 to 4/3.
        crop: side of the square that it is resized to, px, rounded down to whole patches.
        flip: mirror every other view.
    """
    from torchvision.transforms import RandomResizedCrop  # two seconds that few stages need

    side = crop // geometry.patch * geometry.patch
    mirrored = flip and bool(generator.random() < 0.5)
    image = torch.empty(()).expand(3, height, width)
    with torch.random.fork_rng(devices=[]):  # torchvision draws by the global generator
        torch.manual_seed(int(generator.integers(2**31)))
        found = RandomResizedCrop.get_params(image, list(area), [3 / 4, 4 / 3])
    top, left, tall, wide = found
    resized = round(height * side / tall), round(width * side / wide)
    box = (round(top * side / tall), round(left * side / wide), side, side)
    return Plan(geometry.patch, resized, box, [box], box[2:], box[2:], mirrored)


def _resized(height: int, width: int, geometry: Geometry) -> tuple[int, int]:
    """Return the size of the resized image, px; aligned sides are whole patches, at least one."""
    short, patch = geometry.short_side, geometry.patch
    factor = short / min(height, width)
    if not geometry.aligned:
        return round(height * factor), round(width * factor)
    if short < patch:
        raise ValueError(
            f"the short side must be at least one patch ({patch} px), found {short} px"
        )
    rows, columns = (max(1, round(side * factor / patch)) for side in (height, width))
    return rows * patch, columns * patch


def _window(resized: tuple[int, int], geometry: Geometry) -> tuple[int, int] | None:
    """Return side and stride of the windows, px; None where the image is one tile."""
    patch, window, stride = geometry.patch, geometry.window, geometry.stride
    if window is None or stride is None:
        if resized[0] // patch * (resized[1] // patch) <= geometry.most:
            return None
        window = min(geometry.short_side, int(geometry.most**0.5) * patch)
        stride = max(patch, window * 2 // 3)
    if not geometry.aligned:
        return window, stride
    if window < patch or stride < patch:
        raise ValueError(
            f"window and stride must be at least one patch ({patch} px), found {window} and "
            f"{stride} px"
        )
    return window // patch * patch, stride // patch * patch


def place_windows(height: int, width: int, side: int, stride: int) -> list[Box]:
    """Place sliding windows as mmsegmentation does.

    Along a side there are ceil((length - side) / stride) + 1 windows. The last one is moved back to
    end flush with the image. A length below ``side`` gives one window of that length.
    """
    return [
        (top, left, min(side, height), min(side, width))
        for top in _starts(height, side, stride)
        for left in _starts(width, side, stride)
    ]


def _starts(length: int, window: int, stride: int) -> list[int]:
    last = max(0, length - window)
    return [*range(0, last, stride), last]


def centre_box(height: int, width: int, crop: int) -> Box:
    """Return the box of the central square of ``crop`` pixels, cut off where it does not fit."""
    tall, wide = min(crop, height), min(crop, width)
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def grid(box: Box, patch: int) -> tuple[int, int]:
    """Return rows and columns of the patches of a box, at least one of each."""
    return max(1, round(box[2] / patch)), max(1, round(box[3] / patch))


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image uint8 ``(H, W, 3)`` (bicubic) to uint8 ``(height, width, 3)``."""
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def tile_pixels(resized: np.ndarray, box: Box, patch: int, flip: bool = False) -> Tensor:
    """Cut a tile out of a resized image, in whole patches (bilinear where it is not yet).

    Args:
        resized: uint8 ``(H, W, 3)``.
        flip: mirror the tile from left to right.

    Returns:
        float32 ``(3, rows * patch, columns * patch)`` in [0, 1].
    """
    top, left, height, width = box
    pixels = resized[top : top + height, left : left + width].astype(np.float32) / 255.0
    cut = np.ascontiguousarray((pixels[:, ::-1] if flip else pixels).transpose(2, 0, 1))
    size = [side * patch for side in grid(box, patch)]
    tile = torch.from_numpy(cut)
    if list(tile.shape[1:]) == size:
        return tile
    return F.interpolate(tile[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)

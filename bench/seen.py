"""Labelled images as a protocol of the contest sees them, and their pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from cache.features import Features
from cache.images import read_image
from cache.index import ImageRow, read_index
from cache.labels import read_label, read_labels
from pipeline.evaluation import count
from pipeline.geometry import Geometry, Plan, plan, resize
from pipeline.maps.crf import CRFS, TEMPERATURE, refined_map


class Seen(NamedTuple):
    """An image with its ground truth, as a protocol sees it.

    Attributes:
        tiles: ids in the cache, one for each tile of the plan.
        label: uint8 ``plan.size``, 255 = ignore.
    """

    row: ImageRow
    tiles: list[int]
    plan: Plan
    label: np.ndarray

    def windows(self) -> list[np.ndarray]:
        """The pixels of every tile, uint8 ``(h, w, 3)``; of one that is the image, the photo's."""
        return _windows(self.row.path, self.plan.resized, self.plan.tiles)


def tile_pixels(cache: Features, rows: Sequence[ImageRow], tile: int) -> np.ndarray:
    """The pixels of a tile of training, as `Seen.windows`, its colours as in the photo."""
    entry = cache.tiles[tile]
    resized = int(entry["resized_h"]), int(entry["resized_w"])
    box = entry[["top", "left", "height", "width"]].item()
    (found,) = _windows(rows[entry["image"]].path, resized, [box])
    return found[:, ::-1] if entry["flip"] else found


def _windows(
    path: str, resized: tuple[int, int], boxes: list[tuple[int, int, int, int]]
) -> list[np.ndarray]:
    photo = read_image(path)
    if boxes == [(0, 0, *resized)]:
        return [photo]
    whole = resize(photo, *resized)
    return [whole[top : top + h, left : left + w] for top, left, h, w in boxes]


def labelled(cache: Features, split: str, protocol: str) -> Iterator[Seen]:
    """The labelled images of an evaluation split."""
    rows = read_index("data/index.csv")
    _, truth = read_labels("data/labels.csv", rows)
    protocols = cache.manifest["protocols"]
    geometry, view = Geometry(**protocols[protocol]), -1 - list(protocols).index(protocol)
    for row in rows:
        if row.split == split and row.id in truth:
            found = plan(geometry, row.height, row.width)
            label = found.cut_label(read_label(*truth[row.id][1:]))
            yield Seen(row, cache.tiles_of_image(row.id, view), found, label)


def patch_labels(cache: Features, split: str) -> Iterator[tuple[int, np.ndarray]]:
    """The tiles to train on with the classes at the centres of their patches, ``(patches,)``."""
    rows = read_index("data/index.csv")
    _, truth = read_labels("data/labels.csv", rows)
    for tile in cache.training_tiles(split).tolist():
        entry = cache.tiles[tile]
        if (row := rows[entry["image"]]).id in truth:
            label = read_label(*truth[row.id][1:])
            found = label[np.ix_(*_centres(entry, label.shape))]
            yield tile, (found[:, ::-1] if entry["flip"] else found).ravel()


def _centres(entry: np.void, size: Sequence[int]) -> list[np.ndarray]:
    """Rows and columns, of an image of this size, at the centres of a tile's patches."""
    sides = zip(
        ("grid_h", "grid_w"), ("height", "width"), ("top", "left"), ("resized_h", "resized_w"),
        size, strict=True,
    )  # fmt: skip
    return [
        ((entry[first] + (np.arange(entry[n]) + 0.5) * entry[side] / entry[n]) * pixels
         / entry[whole]).astype(int)
        for n, side, first, whole, pixels in sides
    ]  # fmt: skip


def count_pixels(
    item: Seen, scores: Sequence[Tensor], shape: tuple[int, int], crf: str, logits: bool
) -> np.ndarray:
    """Pixels of every (cluster, class) of an image, int64 of this shape.

    Args:
        scores: ``(k, grid_h, grid_w)`` of every tile of the plan.
        crf: one of `CRFS`.
        logits: what the scores are, for a CRF.
    """
    refiner = CRFS[crf]
    photo = read_image(item.row.path) if refiner else None
    temperature = TEMPERATURE if logits else None
    ids = refined_map(item.plan, scores, photo, refiner, temperature=temperature)
    return count(ids.astype(np.int64), item.label, *shape)

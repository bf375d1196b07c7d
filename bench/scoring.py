"""What the measuring commands share: labelled tiles, scores at full resolution, mean and spread."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cache import params
from cache.features import Features
from cache.index import read_index
from cache.labels import read_label, read_labels
from pipeline.evaluation import count


class Labelled(NamedTuple):
    """A tile that is a whole image, with its ground truth."""

    tokens: np.ndarray  # float16 (grid_h * grid_w, channels of all levels)
    grid: tuple[int, int]
    label: np.ndarray  # uint8 (height, width), 255 = ignore


def labelled(
    chosen: params.Params, features: Features, levels: Sequence[str], split: str
) -> Iterator[Labelled]:
    """The labelled images of a split, their levels joined."""
    rows = read_index("data/index.csv")
    _, truth = read_labels("data/labels.csv")
    for tile in features.tiles_of(split):
        entry = features.tiles[tile]
        row = rows[entry["image"]]
        if row.id in truth:
            tokens = features.batch(levels, [tile])
            grid = int(entry["grid_h"]), int(entry["grid_w"])
            yield Labelled(tokens, grid, read_label(truth[row.id].path))


def count_table(
    items: Iterable[Labelled], predict: Callable[[Labelled], np.ndarray], k: int, classes: int
) -> np.ndarray:
    """Pixels of every (id, class), int64 ``(k, classes)``; predict gives ids (height, width)."""
    table = np.zeros((k, classes), np.int64)
    for item in items:
        table += count(predict(item).ravel().astype(np.int64), item.label.ravel(), k, classes)
    return table


def spread(values: Sequence[float]) -> str:
    """The mean, and max - min in brackets."""
    return f"{statistics.fmean(values):.1f} ({max(values) - min(values):.1f})"

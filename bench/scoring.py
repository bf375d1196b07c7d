"""What the opponents share: tokens to fit on, labelled tiles, scores over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch import Tensor

from cache.features import Features
from cache.graphs import Graphs
from cache.images import read_image
from cache.index import read_index
from cache.labels import read_label, read_labels
from pipeline.evaluation import MATCHINGS, confusion, count
from pipeline.evaluation import scores as scores_of
from pipeline.features.tiles import sample_plan
from pipeline.features.whitening import unit_rows
from pipeline.maps.crf import Crf, label_map
from stages import params
from stages.train import with_context

MATCHED = ("majority_iou", "hungarian")

Scores = dict[str, tuple[float, float]]  # mIoU and accuracy in percent, by matching


class Labelled(NamedTuple):
    """A tile that is a whole image, with its ground truth."""

    tokens: np.ndarray  # float16 (grid_h * grid_w, channels of all levels)
    grid: tuple[int, int]
    label: np.ndarray  # uint8 (height, width), 255 = ignore
    path: str  # of the image


def cached() -> Features:
    """data/features.zarr; with the level `context` of data/graph.h5 where there is one."""
    features = Features.open("data/features.zarr")
    if not Path("data/graph.h5").exists():
        return features
    with Graphs("data/graph.h5") as graphs:
        graphs.check_features(features.manifest["fingerprint"])
        return with_context(features, graphs)


def labelled(
    chosen: params.Params, features: Features, levels: Sequence[int | str], split: str
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
            yield Labelled(tokens, grid, read_label(truth[row.id].path), row.path)


def balanced(tokens: np.ndarray, channels: Sequence[int]) -> np.ndarray:
    """Levels of equal weight: each one's rows get length 1; a level alone stays as it is.

    Blocks differ in scale, and in the joined tokens the largest would decide alone.

    Args:
        tokens: float16 ``(n, sum of channels)``, levels side by side.
        channels: of each level.

    Returns:
        float32, of the same shape.
    """
    values = tokens.astype(np.float32)
    if len(channels) == 1:
        return values
    levels = np.split(values, np.cumsum(channels)[:-1], axis=1)
    return np.concatenate([unit_rows(level) for level in levels], axis=1)


def sample(
    features: Features, levels: Sequence[str], split: str, wanted: int, seed: int
) -> np.ndarray:
    """Tokens of so many patches of a split, drawn as training draws them, `balanced`."""
    tiles = features.tiles_of(split)
    plan = sample_plan(features.sizes(tiles), wanted, np.random.default_rng([seed, 1]))
    tokens = [features.batch(levels, [t])[rows] for t, rows in zip(tiles, plan, strict=True)]
    return balanced(np.concatenate(tokens), [features.channels(level) for level in levels])


def enlarge(
    scores: np.ndarray, item: Labelled, nearest: bool = False, crf: Crf | None = None
) -> np.ndarray:
    """Cluster ids at an item's pixels: scores ``(patches, K)`` -> integers ``(height, width)``.

    Scores are interpolated, then the greatest wins, after a CRF if there is one; with `nearest` a
    pixel takes its patch's id.
    """
    maps = torch.from_numpy(scores).T.reshape(-1, *item.grid)
    if nearest:
        ids = maps.argmax(dim=0)[None, None].float()
        large = torch.nn.functional.interpolate(ids, item.label.shape, mode="nearest")
        return large[0, 0].long().numpy()
    return pixels(maps, item, crf)


def pixels(maps: Tensor, item: Labelled, crf: Crf | None) -> np.ndarray:
    """Cluster ids at an item's pixels: score maps ``(K, h, w)`` -> uint16 ``(height, width)``."""
    height, width = item.label.shape
    image = None if crf is None else read_image(item.path)
    return label_map(maps, height, width, image, crf)


def count_table(
    items: Iterable[Labelled], predict: Callable[[Labelled], np.ndarray], k: int, classes: int
) -> np.ndarray:
    """Pixels of every (id, class), int64 ``(k, classes)``; predict gives ids (height, width)."""
    table = np.zeros((k, classes), np.int64)
    for item in items:
        table += count(predict(item).ravel().astype(np.int64), item.label.ravel(), k, classes)
    return table


def score(
    items: Iterable[Labelled], predict: Callable[[Labelled], np.ndarray], k: int, classes: int
) -> Scores:
    """Score clusters, mapped to classes by an oracle; the arguments are those of `count_table`."""
    return matched(count_table(items, predict, k, classes))


def matched(counts: np.ndarray) -> Scores:
    """Score a table of `count_table` with each of `MATCHED`, fitted on the table itself."""
    found = {name: scores_of(confusion(counts, MATCHINGS[name](counts))) for name in MATCHED}
    return {name: (values.miou, values.accuracy) for name, values in found.items()}


def show_scores(setting: Mapping[str, Any], seeds: Sequence[Scores]) -> None:
    """Print mean and spread over the seeds, then the setting and all values as a line of JSON."""
    click.echo(f"{dict(setting)}")
    found = {name: [scores[name] for scores in seeds] for name in MATCHED}
    for name, values in found.items():
        columns = (spread(column) for column in zip(*values, strict=True))
        click.echo(f"  {name}: " + " / ".join(columns))
    click.echo(json.dumps({**setting, **found}))


def spread(values: Sequence[float]) -> str:
    """The mean, and max - min in brackets."""
    return f"{statistics.fmean(values):.1f} ({max(values) - min(values):.1f})"

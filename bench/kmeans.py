"""K-means on any cached level, from the cache alone: the baseline, swept over levels and K."""

from __future__ import annotations

import json
import statistics

import click
import numpy as np
import torch

from cache import params
from cache.features import Features
from cache.index import ImageRow, read_index
from cache.labels import read_label, read_labels
from pipeline import kmeans
from pipeline.evaluation import MATCHINGS, confusion, count, scores
from pipeline.upsampling import upsample_argmax


@click.command()
@click.option("--level", default="last", help="Cached level: first, middle, last, keys, a number.")
@click.option("--clusters", default=256, show_default=True, help="K.")
@click.option("--whiten", default=None, type=int, help="PCA-whiten to so many dimensions first.")
@click.option("--seeds", default=3, show_default=True, help="Seeds 0, 1, ...")
@click.option("--nearest", is_flag=True, help="Assign patches, then enlarge ids; no interpolation.")
def main(level: str, clusters: int, whiten: int | None, seeds: int, nearest: bool) -> None:
    """Fit K-means on the training split of data/features.zarr and score the evaluation split.

    Needs a cache of whole images. Prints mIoU and accuracy (majority_iou and hungarian, oracle
    mapping) as mean over the seeds with max - min, and the single values as JSON.
    """
    chosen = params.load()
    features = Features.open("data/features.zarr")
    rows = read_index("data/index.csv")
    classes, truth = read_labels("data/labels.csv")
    found: dict[str, list[tuple[float, float]]] = {"majority_iou": [], "hungarian": []}
    for seed in range(seeds):
        model = _fit(chosen, features, level, clusters, whiten, seed)
        counts = np.zeros((clusters, len(classes)), np.int64)
        for tile in features.tiles_of(chosen.data.eval):
            row = rows[features.tiles["image"][tile]]
            ids = _label_map(features, model, level, int(tile), row, nearest)
            label = read_label(truth[row.id].path)
            counts += count(ids.ravel(), label.ravel(), clusters, len(classes))
        for name, values in found.items():
            score = scores(confusion(counts, MATCHINGS[name](counts)))
            values.append((score.miou, score.accuracy))
    setting = {"level": level, "clusters": clusters, "whiten": whiten, "nearest": nearest}
    click.echo(f"{setting}")
    for name, values in found.items():
        click.echo(
            f"  {name}: " + " / ".join(_spread(column) for column in zip(*values, strict=True))
        )
    click.echo(json.dumps({**setting, **found}))


def _fit(
    chosen: params.Params,
    features: Features,
    level: str,
    clusters: int,
    whiten: int | None,
    seed: int,
) -> kmeans.KMeans:
    tiles = features.tiles_of(chosen.data.train)
    wanted = clusters * chosen.kmeans.points_per_centroid
    sample = kmeans.sample_plan(features.sizes(tiles), wanted, np.random.default_rng([seed, 1]))
    points = [features.tokens(level, t)[rows] for t, rows in zip(tiles, sample, strict=True)]
    return kmeans.fit(
        np.concatenate(points).astype(np.float32),
        clusters,
        iterations=chosen.kmeans.iterations,
        spherical=chosen.kmeans.spherical,
        whiten=whiten,
        seed=seed,
    )


def _label_map(
    features: Features, model: kmeans.KMeans, level: str, tile: int, row: ImageRow, nearest: bool
) -> np.ndarray:
    shape = (int(features.tiles[tile]["grid_h"]), int(features.tiles[tile]["grid_w"]))
    tokens = features.tokens(level, tile).astype(np.float32)
    maps = torch.from_numpy(kmeans.scores(model, tokens)).T.reshape(-1, *shape)
    if nearest:
        ids = maps.argmax(dim=0)[None, None].float()
        large = torch.nn.functional.interpolate(ids, (row.height, row.width), mode="nearest")
        return large[0, 0].long().numpy()
    return upsample_argmax(maps, row.height, row.width).astype(np.int64)


def _spread(values: tuple[float, ...]) -> str:
    return f"{statistics.fmean(values):.1f} ({max(values) - min(values):.1f})"


if __name__ == "__main__":
    main()

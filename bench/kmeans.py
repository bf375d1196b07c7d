"""K-means on any cached level, from the cache alone: the baseline, swept over levels and K."""

from __future__ import annotations

import json
from functools import partial

import click
import numpy as np
import torch

from bench.scoring import Labelled, count_table, labelled, spread
from cache import params
from cache.features import Features
from cache.labels import read_labels
from pipeline import kmeans
from pipeline.evaluation import MATCHINGS, confusion, scores
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
    classes, _ = read_labels("data/labels.csv")
    found: dict[str, list[tuple[float, float]]] = {"majority_iou": [], "hungarian": []}
    for seed in range(seeds):
        model = _fit(chosen, features, level, clusters, whiten, seed)
        items = labelled(chosen, features, [level], chosen.data.eval)
        counts = count_table(items, partial(_ids, model, nearest), clusters, len(classes))
        for name, values in found.items():
            score = scores(confusion(counts, MATCHINGS[name](counts)))
            values.append((score.miou, score.accuracy))
    setting = {"level": level, "clusters": clusters, "whiten": whiten, "nearest": nearest}
    click.echo(f"{setting}")
    for name, values in found.items():
        click.echo(
            f"  {name}: " + " / ".join(spread(column) for column in zip(*values, strict=True))
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


def _ids(model: kmeans.KMeans, nearest: bool, item: Labelled) -> np.ndarray:
    """Cluster ids of one image: integers ``(height, width)``."""
    maps = torch.from_numpy(kmeans.scores(model, item.tokens)).T.reshape(-1, *item.grid)
    if nearest:
        ids = maps.argmax(dim=0)[None, None].float()
        large = torch.nn.functional.interpolate(ids, item.label.shape, mode="nearest")
        return large[0, 0].long().numpy()
    return upsample_argmax(maps, *item.label.shape)


if __name__ == "__main__":
    main()

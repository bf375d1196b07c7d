"""K-means on any cached levels, from the cache alone: the opponent, at its best."""

from __future__ import annotations

from functools import partial

import click
import numpy as np

from bench.scoring import Labelled, balanced, cached, enlarge, labelled, sample, score, show_scores
from cache.labels import read_labels
from pipeline.head import kmeans
from pipeline.maps.crf import Crf, choose_crf
from stages import params


@click.command()
@click.option("--level", default="last", help="Level, also `context`, or several, by commas.")
@click.option("--clusters", default=256, show_default=True, help="K.")
@click.option("--spherical/--no-spherical", default=None, help="By default as in params.yaml.")
@click.option("--whiten", default=None, type=int, help="PCA-whiten to so many dimensions first.")
@click.option("--power", default=0.5, show_default=True, help="Of the eigenvalues in whitening.")
@click.option("--seeds", default=3, show_default=True, help="Seeds 0, 1, ...")
@click.option("--nearest", is_flag=True, help="Assign patches, then enlarge ids; no interpolation.")
def main(
    level: str,
    clusters: int,
    spherical: bool | None,
    whiten: int | None,
    power: float,
    seeds: int,
    nearest: bool,
) -> None:
    """Fit K-means on the training split of data/features.zarr and score the evaluation split.

    Needs a cache of whole images. Of several levels each one's tokens are divided by their length
    before they are joined. A power of 0.5 whitens, 0.25 half-whitens, 0 only projects. The CRF is
    that of params.yaml. Prints mIoU and accuracy (majority_iou and hungarian, oracle mapping) as
    mean over the seeds with max - min, and the single values as JSON.
    """
    chosen = params.load()
    crf = choose_crf(**chosen.segment.crf.model_dump())
    features = cached()
    classes, _ = read_labels("data/labels.csv")
    levels = level.split(",")
    channels = [features.channels(name) for name in levels]
    spherical = chosen.kmeans.spherical if spherical is None else spherical
    found = []
    for seed in range(seeds):
        wanted = clusters * chosen.kmeans.points_per_centroid
        model = kmeans.fit(
            sample(features, levels, chosen.data.train, wanted, seed),
            clusters,
            iterations=chosen.kmeans.iterations,
            spherical=spherical,
            whiten=whiten,
            power=power,
            seed=seed,
        )
        items = labelled(chosen, features, levels, chosen.data.eval)
        predict = partial(_ids, model, channels, nearest, crf)
        found.append(score(items, predict, clusters, len(classes)))
    setting = {"level": level, "clusters": clusters, "spherical": spherical, "crf": bool(crf)}
    show_scores({**setting, "whiten": whiten, "power": power, "nearest": nearest}, found)


def _ids(
    model: kmeans.KMeans, channels: list[int], nearest: bool, crf: Crf | None, item: Labelled
) -> np.ndarray:
    """Cluster ids of one image: integers ``(height, width)``."""
    scores = kmeans.scores(model, balanced(item.tokens, channels))
    return enlarge(scores, item, nearest, crf)


if __name__ == "__main__":
    main()

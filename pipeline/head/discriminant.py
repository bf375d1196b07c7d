"""A metric without labels: Fisher's discriminants of coarse clusters, averaged over runs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.features.whitening import unit_rows
from pipeline.head import kmeans

POINTS = 300  # for each centre of a run
BLOCK = 16_384  # points that are assigned at a time


class Discriminant(NamedTuple):
    """``(tokens - mean) @ projection`` are the discriminants of tokens.

    Attributes:
        mean: float32 ``(C,)``.
        projection: float32 ``(C, d)``; first what varies least inside clusters.
    """

    mean: np.ndarray
    projection: np.ndarray

    def rows(self, tokens: np.ndarray) -> np.ndarray:
        """Discriminants of length 1: float32 ``(n, C)`` -> ``(n, d)``."""
        return unit_rows((tokens - self.mean) @ self.projection)


def fit(
    points: np.ndarray,
    dimensions: int,
    *,
    clusters: int,
    runs: int,
    shrinkage: float,
    seed: int,
    gpu: bool = True,
) -> Discriminant:
    """Directions in which clusters differ, scaled to equal variance inside clusters.

    As in linear discriminant analysis, but for the classes: they are the clusters of spherical
    K-means, as in Ding and Li, "Adaptive dimension reduction using discriminant analysis and
    K-means clustering", ICML 2007. The covariance S inside clusters is the mean over several runs,
    so that it does not depend on where one of them drew its borders, and the projection is
    ``(S + shrinkage * tr(S) / C)^(-1/2)`` along S's principal axes.

    Args:
        points: float32 ``(n, C)``, rows of length 1, n >= clusters.
        dimensions: d, how many discriminants to keep, at most C.
        clusters: of each run; fewer and coarser ones than are wanted in the end.
        runs: K-means, each on points of its own draw and from centres of its own.
        shrinkage: of S towards a sphere; without bounds the projection does nothing.
        seed: of the draws.
        gpu: as in `kmeans.fit`.
    """
    mean = points.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = points - mean
    total = centred.T @ centred
    inside = np.zeros(total.shape)
    for run in range(runs):
        generator = np.random.default_rng([seed, run])
        drawn = generator.choice(len(points), min(len(points), clusters * POINTS), replace=False)
        start = int(generator.integers(2**31))
        centres = kmeans.centres(points[drawn], clusters, spherical=True, seed=start, gpu=gpu)
        inside += (total - _between(points, centred, centres)) / (len(points) * runs)
    values, axes = np.linalg.eigh(inside)  # ascending: what varies least inside clusters first
    spread = np.maximum(values, 0) + shrinkage * values.mean()
    projection = axes / np.sqrt(np.maximum(spread, np.finfo(np.float32).tiny))
    return Discriminant(mean, np.ascontiguousarray(projection[:, :dimensions], np.float32))


def _between(points: np.ndarray, centred: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Scatter of the clusters' means, each counted as often as it has points: ``(C, C)``."""
    blocks = range(0, len(points), BLOCK)
    ids = np.concatenate([(points[i : i + BLOCK] @ centres.T).argmax(axis=1) for i in blocks])
    found = kmeans.means(centred, ids, np.zeros_like(centres))
    sizes = np.bincount(ids, minlength=len(centres))
    return (found * sizes[:, None]).T @ found

"""A metric without labels: a likelihood ratio of coarse clusters, averaged over runs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh

from pipeline.features.whitening import unit_rows
from pipeline.head import kmeans

POINTS = 300  # for each centre of a run
BLOCK = 16_384  # points that are assigned at a time
FLOOR = 1e-4  # of the mean variance, added to each: few points leave directions without any


class Discriminant(NamedTuple):
    """``(tokens - mean) @ projection`` are the discriminants of tokens.

    Attributes:
        mean: float32 ``(C,)``.
        projection: float32 ``(C, d)``; first what tells clusters apart best.
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
    seed: int,
    gpu: bool = True,
) -> Discriminant:
    """A metric in which near means: rather of one cluster than of any two.

    With the covariances W inside clusters and B between their means the metric is
    ``W^-1 - (W + B)^-1``, the logarithm of the likelihood ratio of Köstinger et al., "Large scale
    metric learning from equivalence constraints", CVPR 2012, where pairs of one cluster stand for
    pairs known to be alike. Fisher's discriminants v, ``B v = l W v``, make it diagonal: each is
    scaled to variance 1 inside clusters, then by ``sqrt(l / (1 + l))``, so that one in which
    clusters do not differ does not count. Clusters are those of spherical K-means, as in Ding and
    Li, "Adaptive dimension reduction using discriminant analysis and K-means clustering", ICML
    2007; W and B are means over several runs, so that they do not depend on where one of them drew
    its borders. The metric sharpens what clusters see of classes; where noise alone makes the
    clusters, it sharpens the noise.

    Args:
        points: float32 ``(n, C)``, rows of length 1, n >= clusters.
        dimensions: d, how many discriminants to keep, at most C.
        clusters: of each run; fewer and coarser ones than are wanted in the end.
        runs: K-means, each on points of its own draw and from centres of its own.
        seed: of the draws.
        gpu: as in `kmeans.fit`.
    """
    mean = points.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = points - mean
    total = (centred.T @ centred).astype(np.float64) / len(points)
    between = np.zeros(total.shape)
    for run in range(runs):
        generator = np.random.default_rng([seed, run])
        drawn = generator.choice(len(points), min(len(points), clusters * POINTS), replace=False)
        start = int(generator.integers(2**31))
        centres = kmeans.centres(points[drawn], clusters, spherical=True, seed=start, gpu=gpu)
        between += _between(points, centred, centres) / runs
    variance = max(np.trace(total) / len(total), np.finfo(np.float32).tiny)
    inside = total - between + FLOOR * variance * np.eye(len(total))
    ratios, axes = eigh(between, inside)  # ascending
    ratios = np.maximum(ratios[::-1], 0)
    projection = axes[:, ::-1] * np.sqrt(ratios / (1 + ratios))
    return Discriminant(mean, np.ascontiguousarray(projection[:, :dimensions], np.float32))


def _between(points: np.ndarray, centred: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Covariance of the clusters' means, each counted as often as it has points: ``(C, C)``."""
    blocks = range(0, len(points), BLOCK)
    ids = np.concatenate([(points[i : i + BLOCK] @ centres.T).argmax(axis=1) for i in blocks])
    found = kmeans.means(centred, ids, np.zeros_like(centres))
    shares = np.bincount(ids, minlength=len(centres)) / len(points)
    return (found * shares[:, None]).T @ found

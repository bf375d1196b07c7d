"""A metric without labels: the likelihood ratio of coarse clusters, averaged over runs."""

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
        projection: float32 ``(C, d)``, the strongest discriminant first.
    """

    mean: np.ndarray
    projection: np.ndarray

    def rows(self, tokens: np.ndarray) -> np.ndarray:
        """Project tokens to discriminants of length 1: float32 ``(n, C)`` -> ``(n, d)``."""
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
    """Fit a metric under which pairs of one cluster lie nearer than other pairs.

    With the covariances W inside clusters and B between their means the metric is
    ``W^-1 - (W + B)^-1``, the log-likelihood ratio of Köstinger et al., "Large scale metric
    learning from equivalence constraints", CVPR 2012, with pairs of one cluster as similar pairs.
    Fisher's discriminants v, ``B v = l W v``, make it diagonal: each is scaled to variance 1
    inside clusters, then by ``sqrt(l / (1 + l))``, so that those on which clusters agree vanish.
    Clusters come from spherical K-means, as in Ding and Li, "Adaptive dimension reduction using
    discriminant analysis and K-means clustering", ICML 2007. W and B are means over several runs,
    because the borders of one run are chance. Where noise alone makes the clusters, the metric
    sharpens the noise.

    Args:
        points: float32 ``(n, C)``, rows of length 1, n >= clusters.
        dimensions: d, how many discriminants to keep, at most C.
        clusters: of each run, coarser than those wanted in the end.
        runs: of K-means, each with its own sample and first centres.
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
    """Compute the covariance of cluster means, weighted by their points: ``(C, C)``."""
    blocks = range(0, len(points), BLOCK)
    ids = np.concatenate([(points[i : i + BLOCK] @ centres.T).argmax(axis=1) for i in blocks])
    found = kmeans.means(centred, ids, np.zeros_like(centres))
    shares = np.bincount(ids, minlength=len(centres)) / len(points)
    return (found * shares[:, None]).T @ found

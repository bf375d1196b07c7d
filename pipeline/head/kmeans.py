"""K-means on patch tokens: fitting with FAISS, scores for any token."""

from __future__ import annotations

from typing import NamedTuple

import faiss
import numpy as np
from scipy.sparse import csr_array

from pipeline.device import gpu_count
from pipeline.features.whitening import unit_rows, whitening

ITERATIONS = 20  # of Lloyd's algorithm


class KMeans(NamedTuple):
    """K centres, and the preparation of tokens that are compared with them.

    Attributes:
        centroids: float32 ``(K, d)``, in the space of the prepared tokens.
        mean: float32 ``(c,)``, removed from the tokens before the projection.
        projection: float32 ``(c, d)``, whitens the tokens; ``(c, 0)`` without whitening.
        spherical: tokens and centres have length 1, nearness is the cosine.
    """

    centroids: np.ndarray
    mean: np.ndarray
    projection: np.ndarray
    spherical: bool


def fit(
    points: np.ndarray,
    clusters: int,
    *,
    spherical: bool,
    whiten: int | None,
    seed: int,
    gpu: bool = True,
) -> KMeans:
    """Fit K-means to all the points given; the caller samples.

    Args:
        points: float32 ``(n, c)``.
        clusters: K.
        spherical: L2-normalise the points first (and again after whitening), and the centres.
        whiten: project to this many principal components of unit variance; None leaves them.
        seed: of the first centres, which are drawn from the points.
        gpu: use the GPUs that FAISS finds; without one, or with False, the CPU.

    Raises:
        ValueError: fewer points than clusters, a value that is not finite, or more components to
            whiten than channels.
    """
    _check(points, clusters, whiten)
    channels = points.shape[1]
    mean, projection = np.zeros(channels, np.float32), np.zeros((channels, 0), np.float32)
    if whiten is not None:
        mean, projection = whitening(unit_rows(points) if spherical else points, whiten)
    model = KMeans(np.zeros((0, whiten or channels), np.float32), mean, projection, spherical)
    centroids = centres(
        prepare(model, points),
        clusters,
        spherical=spherical,
        seed=seed,
        gpu=gpu,
    )
    return model._replace(centroids=centroids)


def centres(
    points: np.ndarray,
    clusters: int,
    *,
    spherical: bool,
    seed: int,
    gpu: bool = True,
) -> np.ndarray:
    """Find Lloyd's centres of all the points given: float32 ``(n, d)``, n >= K -> ``(K, d)``.

    The arguments are those of `fit`.
    """
    kmeans = faiss.Kmeans(
        points.shape[1],
        clusters,
        niter=ITERATIONS,
        seed=seed,
        spherical=spherical,
        gpu=gpu and gpu_count() > 0,
        min_points_per_centroid=1,  # few points are the caller's choice, not a warning
        max_points_per_centroid=len(points) // clusters + 1,  # no sub-sampling by FAISS
    )
    kmeans.train(points)
    return np.asarray(kmeans.centroids)


def means(points: np.ndarray, ids: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """Average the points of every cluster: float32 ``(K, d)``.

    Args:
        points: float32 ``(n, d)``.
        ids: integers ``(n,)``, the cluster of each point.
        empty: float32 ``(K, d)``, the rows of clusters without a point.
    """
    counts, number = np.bincount(ids, minlength=len(empty))[:, None], np.arange(len(ids))
    members = csr_array((np.ones(len(ids), np.float32), (ids, number)), (len(empty), len(ids)))
    found = members @ points / np.maximum(counts, 1)
    return np.where(counts > 0, found, empty).astype(np.float32)


def prepare(model: KMeans, tokens: np.ndarray) -> np.ndarray:
    """Prepare tokens for the comparison with centres: float32 ``(n, c)`` -> ``(n, d)``."""
    values = np.ascontiguousarray(tokens, np.float32)
    if model.spherical:
        values = unit_rows(values)
    if model.projection.shape[1]:
        values = (values - model.mean) @ model.projection
        if model.spherical:
            values = unit_rows(values)
    return values


def scores(model: KMeans, tokens: np.ndarray) -> np.ndarray:
    """Score each token for each centre: float32 ``(n, c)`` -> ``(n, K)``, higher is nearer.

    The score is the cosine x.m when spherical, else 2 x.m - |m|^2, which is |x|^2 minus the squared
    distance. Both are linear in the prepared token, so interpolation of scores or of tokens agrees.
    """
    products = prepare(model, tokens) @ model.centroids.T
    if model.spherical:
        return products
    return 2 * products - np.square(model.centroids).sum(axis=1)


def _check(points: np.ndarray, clusters: int, whiten: int | None) -> None:
    if len(points) < clusters:
        raise ValueError(
            f"K-means needs at least as many points as clusters, found {len(points)} points for "
            f"{clusters} clusters: lower the number of clusters or add training images"
        )
    if not np.isfinite(points).all():
        row = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
        raise ValueError(
            f"K-means needs finite points, found NaN or infinity first in row {row} of "
            f"{len(points)}: delete the feature cache and extract again"
        )
    if whiten is not None and whiten > points.shape[1]:
        raise ValueError(
            f"whitening keeps at most as many components as there are channels, found {whiten} for "
            f"{points.shape[1]} channels: keep fewer, or do not whiten"
        )

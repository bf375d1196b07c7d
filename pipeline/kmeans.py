"""K-means on patch tokens: fitting with FAISS, scores for any token, the plan of the sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import faiss
import numpy as np

from pipeline.knn import gpu_count

BLOCK = 16384  # rows that are turned to float64 at a time


class KMeans(NamedTuple):
    """K centres and what is done to tokens before they are compared with them.

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
    iterations: int,
    spherical: bool,
    whiten: int | None,
    seed: int,
    power: float = 0.5,
    gpu: bool = True,
) -> KMeans:
    """Fit K-means to all the points given; the caller samples.

    Args:
        points: float32 ``(n, c)``.
        clusters: K.
        iterations: Lloyd iterations.
        spherical: L2-normalise the points first (and again after whitening), and the centres.
        whiten: project to this many principal components of unit variance; None leaves them.
        seed: of the first centres, which are drawn from the points.
        power: of the components' variances, as in `whitening`.
        gpu: use the GPUs that FAISS finds; without one, or with False, the CPU.

    Raises:
        ValueError: fewer points than clusters, a value that is not finite, or more components to
            whiten than channels.
    """
    _check(points, clusters, whiten)
    channels = points.shape[1]
    mean, projection = np.zeros(channels, np.float32), np.zeros((channels, 0), np.float32)
    if whiten is not None:
        mean, projection = whitening(unit_rows(points) if spherical else points, whiten, power)
    model = KMeans(np.zeros((0, whiten or channels), np.float32), mean, projection, spherical)
    found = centres(
        prepare(model, points),
        clusters,
        iterations=iterations,
        spherical=spherical,
        seed=seed,
        gpu=gpu,
    )
    return model._replace(centroids=found)


def centres(
    points: np.ndarray,
    clusters: int,
    *,
    iterations: int,
    spherical: bool,
    seed: int,
    gpu: bool = True,
) -> np.ndarray:
    """Lloyd's centres of all the points given: float32 ``(n, d)``, n >= K -> ``(K, d)``.

    The arguments are those of `fit`.
    """
    kmeans = faiss.Kmeans(
        points.shape[1],
        clusters,
        niter=iterations,
        seed=seed,
        spherical=spherical,
        gpu=gpu and gpu_count() > 0,
        min_points_per_centroid=1,  # few points are the caller's choice, not a warning
        max_points_per_centroid=len(points) // clusters + 1,  # no sub-sampling by FAISS
    )
    kmeans.train(points)
    return np.asarray(kmeans.centroids)


def prepare(model: KMeans, tokens: np.ndarray) -> np.ndarray:
    """The tokens as they are compared with the centres: float32 ``(n, c)`` -> ``(n, d)``."""
    values = np.ascontiguousarray(tokens, np.float32)
    if model.spherical:
        values = unit_rows(values)
    if model.projection.shape[1]:
        values = (values - model.mean) @ model.projection
        if model.spherical:
            values = unit_rows(values)
    return values


def scores(model: KMeans, tokens: np.ndarray) -> np.ndarray:
    """How near each token is to each centre: float32 ``(n, c)`` -> ``(n, K)``, higher is nearer.

    The cosine x.m when spherical, else 2 x.m - |m|^2, which is |x|^2 minus the squared distance.
    Both are linear in the prepared token, so that interpolated scores are the scores of
    interpolated tokens; argmax is the assignment.
    """
    products = prepare(model, tokens) @ model.centroids.T
    if model.spherical:
        return products
    return 2 * products - np.square(model.centroids).sum(axis=1)


def whitening(
    points: np.ndarray, components: int, power: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """PCA whitening of float32 ``(n, c)``: mean ``(c,)`` and projection ``(c, components)``.

    Components are divided by their variance to the given power: at 0.5 ``(points - mean) @
    projection`` has the identity as covariance, at 0 the variances stay. Eigenvalues below 1e-7 of
    the largest are noise: their directions are damped, not blown up to unit variance.
    """
    mean = points.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((points.shape[1], points.shape[1]))
    for start in range(0, len(points), BLOCK):
        block = points[start : start + BLOCK] - mean
        covariance += block.T @ block / len(points)
    eigenvalues, vectors = np.linalg.eigh(covariance)  # ascending
    tiny = max(1e-7 * eigenvalues[-1], np.finfo(np.float32).tiny)
    scale = 1 / (np.maximum(eigenvalues, 0) + tiny) ** power
    projection = (vectors * scale)[:, ::-1][:, :components]
    return mean.astype(np.float32), np.ascontiguousarray(projection, np.float32)


def sample_plan(
    sizes: Sequence[int], wanted: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """Choose tokens of all tiles uniformly, without replacement, before any of them is read.

    Args:
        sizes: tokens of each tile.
        wanted: tokens to choose; all of them where there are no more.

    Returns:
        Per tile the chosen positions in it, int64, ascending.
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    if wanted < total:
        # NumPy draws few of many with a hash set: memory follows `wanted`, not the total.
        chosen = np.sort(generator.choice(total, wanted, replace=False, shuffle=False))
    else:
        chosen = np.arange(total)
    parts = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    return [part - (end - size) for part, end, size in zip(parts, ends, sizes, strict=False)]


def unit_rows(values: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32 ``(n, c)``; zero rows stay zero."""
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.maximum(lengths, np.finfo(np.float32).tiny)


def _check(points: np.ndarray, clusters: int, whiten: int | None) -> None:
    if len(points) < clusters:
        raise ValueError(
            f"K-means needs at least as many points as clusters, found {len(points)} points for "
            f"{clusters} clusters: lower `clusters`, raise `kmeans.points_per_centroid` or add "
            "training images"
        )
    if not np.isfinite(points).all():
        row = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
        raise ValueError(
            f"K-means needs finite points, found NaN or infinity first in row {row} of "
            f"{len(points)}: delete the feature cache and extract again"
        )
    if whiten is not None and whiten > points.shape[1]:
        raise ValueError(
            f"kmeans.whiten must not exceed the channels of the tokens, found {whiten} for "
            f"{points.shape[1]} channels: lower it, or set it to null"
        )

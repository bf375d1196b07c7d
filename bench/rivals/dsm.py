"""Deep spectral methods: eigenvectors of each image, segments of it, clusters of all segments.

Melas-Kyriazi, Rupprecht, Laina, Vedaldi, "Deep Spectral Methods", CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg

from pipeline.features.whitening import unit_rows
from pipeline.graph.kernel import block_diagonal, pixel_edges
from pipeline.head import kmeans

COLOUR = 10.0  # weight of the colour graph (lambda)
VECTORS = 15  # eigenvectors of an image, without the constant one
SEGMENTS = 15  # of an image


class Picture(NamedTuple):
    """The patches of one image, row after row of its grid."""

    tokens: np.ndarray  # float32 (n, C)
    rgb: np.ndarray  # float32 (n, 3) in [0, 1]
    grid: tuple[int, int]


def affinity(
    picture: Picture, settings: Sequence[tuple[int, float]], colour: float = COLOUR
) -> np.ndarray:
    """W = max(cos, 0) + colour * the pixel graph, float64 ``(n, n)``.

    Args:
        settings: neighbours and distance weight of each graph in the union (Eq. 3).
    """
    rows = unit_rows(picture.tokens).astype(np.float64)
    pixels = block_diagonal([pixel_edges(picture.rgb, *picture.grid, settings)])
    return np.maximum(rows @ rows.T, 0) + colour * pixels.toarray()


def eigenvectors(weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The least eigenvalues above the first, and vectors y, of (D - W) y = value * D y.

    Args:
        weights: symmetric ``(n, n)``, degrees above 0.
        count: at most n - 1 are given.

    Returns:
        Values float64 ``(m,)``, rising, and vectors ``(n, m)``.
    """
    degrees = weights.sum(axis=1)
    scale = 1 / np.sqrt(degrees)
    laplacian = np.eye(len(weights)) - scale[:, None] * weights * scale
    last = min(count, len(weights) - 1)
    values, vectors = scipy.linalg.eigh(laplacian, subset_by_index=(1, last))
    return values, vectors * scale[:, None]


def segments(picture: Picture, settings: Sequence[tuple[int, float]], seed: int) -> np.ndarray:
    """The segment of every patch, int64 ``(n,)``: K-means on the eigenvectors of the image."""
    _, vectors = eigenvectors(affinity(picture, settings), VECTORS)
    rows = np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=0), np.float32)
    wanted = min(SEGMENTS, len(rows))
    model = kmeans.fit(rows, wanted, spherical=False, whiten=None, seed=seed, gpu=False)
    return kmeans.scores(model, rows).argmax(axis=1)


def segment_features(tokens: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """For every patch the mean unit token of its segment: float32 ``(n, C)``."""
    empty = np.zeros((ids.max() + 1, tokens.shape[1]), np.float32)
    return kmeans.means(unit_rows(tokens), ids, empty)[ids]


class DeepSpectral(NamedTuple):
    """K centres of the mean features of segments."""

    model: kmeans.KMeans
    settings: Sequence[tuple[int, float]]
    seed: int

    def scores(self, picture: Picture) -> np.ndarray:
        """Cosines to the centres, the same all over a segment: float32 ``(n, K)``."""
        ids = segments(picture, self.settings, self.seed)
        return kmeans.scores(self.model, segment_features(picture.tokens, ids))


def fit(
    pictures: Iterable[Picture], settings: Sequence[tuple[int, float]], clusters: int, seed: int
) -> DeepSpectral:
    """Cluster the segments of all training images; each counts once, however large.

    Raises:
        ValueError: fewer segments than clusters.
    """
    found = []
    for picture in pictures:
        ids = segments(picture, settings, seed)
        firsts = np.unique(ids, return_index=True)[1]
        found.append(segment_features(picture.tokens, ids)[firsts])
    points = np.concatenate(found)
    model = kmeans.fit(points, clusters, spherical=True, whiten=None, seed=seed)
    return DeepSpectral(model, settings, seed)

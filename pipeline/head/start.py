"""Starts of training: drawn weights, or weights that make the head spherical K-means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from pipeline.head import discriminant, kmeans
from pipeline.head.discriminant import Discriminant
from pipeline.head.head import Head

LEAST_COARSE = 32  # clusters of the metric, however small K is


class Start:
    """Keeps the drawn weights."""

    def width(self, wanted: int | None, channels: int) -> int | None:
        """Give the head's width, from the wanted one and the channels of its input."""
        return wanted

    def check(self, wanted: int | None, channels: int, patches: int) -> None:
        """Raise ValueError where width, channels and sampled patches do not fit each other."""

    def apply(self, head: Head, sample: Callable[[], np.ndarray]) -> None:
        """Set the weights; ``sample`` reads unit rows of the head's input, float32 ``(n, C)``."""


@dataclass(frozen=True)
class KMeansStart(Start):
    """Makes the head spherical K-means on its input; fields as of `start_at`, `kmeans.fit`."""

    clusters: int
    scale: float
    seed: int
    gpu: bool

    def apply(self, head: Head, sample: Callable[[], np.ndarray]) -> None:
        start_at(head, self.centres(sample()), self.scale)

    def centres(self, points: np.ndarray) -> np.ndarray:
        """Fit K centres of length 1 to points: float32 ``(n, d)`` -> ``(K, d)``."""
        return kmeans.centres(points, self.clusters, spherical=True, seed=self.seed, gpu=self.gpu)


@dataclass(frozen=True)
class DiscriminantStart(KMeansStart):
    """Makes the head spherical K-means under a metric that tells coarse clusters apart.

    Attributes:
        coarse: clusters of each K-means of the metric; None takes half of K, but at least
            `LEAST_COARSE`, for few clusters see few directions.
        runs: K-means that the metric is averaged over.
    """

    coarse: int | None
    runs: int

    def width(self, wanted: int | None, channels: int) -> int | None:
        return channels if wanted is None else wanted

    def check(self, wanted: int | None, channels: int, patches: int) -> None:
        if (wanted or 0) > channels:
            raise ValueError(
                "the start keeps at most as many discriminants as the head's input has channels, "
                f"found {wanted} for {channels} channels"
            )
        if (clusters := self.coarse_clusters(patches)) > patches:
            raise ValueError(
                "the start's metric needs at least as many sampled patches as coarse clusters, "
                f"found {patches} patches for {clusters} clusters"
            )

    def coarse_clusters(self, patches: int) -> int:
        """Count the clusters of each K-means on a sample of so many patches."""
        return self.coarse or min(max(self.clusters // 2, LEAST_COARSE), patches)

    def apply(self, head: Head, sample: Callable[[], np.ndarray]) -> None:
        points = sample()
        options = {"clusters": self.coarse_clusters(len(points)), "runs": self.runs}
        metric = discriminant.fit(points, head.width, **options, seed=self.seed, gpu=self.gpu)
        points = metric.rows(points)  # in place of the former, which may be large
        start_at(head, self.centres(points), self.scale, metric)


@torch.no_grad()
def start_at(
    head: Head, centres: np.ndarray, scale: float, metric: Discriminant | None = None
) -> None:
    """Make a head spherical K-means: logits become scale * cos(token, centre).

    The last layer of every branch of a block becomes 0, so that blocks pass tokens on. The final
    LayerNorm gives unit tokens the length width^1/2 and removes their mean over the channels, which
    is nearly 0.

    Args:
        centres: float32 ``(K, width)``, of length 1.
        metric: becomes the projection; the centres are then of its rows. None for a head without
            a projection.

    Raises:
        ValueError: the head changes its tokens in another way before the blocks, or its last layer
            is constrained.
    """
    projected = isinstance(head.projection, nn.Linear)
    free = projected == (metric is not None) and not head.level_norms
    if not free or parametrize.is_parametrized(head.last):
        raise ValueError(
            "a head that starts from K-means must take its tokens unchanged, or project them to "
            "discriminants, and have a free last layer, found another projection, norms of levels "
            "or an orthogonal layer"
        )
    for block in head.blocks:
        for branch in (block.out, block.mlp[-1]):  # type: ignore[index,union-attr]
            nn.init.zeros_(branch.weight)  # type: ignore[union-attr,arg-type]
            nn.init.zeros_(branch.bias)  # type: ignore[union-attr,arg-type]
    if metric is not None and isinstance(head.projection, nn.Linear):
        head.projection.weight.copy_(torch.from_numpy(metric.projection.T))
        head.projection.bias.copy_(torch.from_numpy(-metric.mean @ metric.projection))
    head.last.weight.copy_(torch.from_numpy(centres) * (scale / head.width**0.5))

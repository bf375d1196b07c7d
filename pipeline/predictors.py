"""The three predictors: tokens of one image -> a score map of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.head import Head
from pipeline.kmeans import KMeans, scores
from pipeline.merge import merge_windows


class Predictors(NamedTuple):
    """What training leaves: the head, K-means on its features, K-means on one level's tokens."""

    head: Head
    ours_kmeans: KMeans
    kmeans: KMeans


class Window(NamedTuple):
    """The tokens of one tile, row after row of its grid; lengths in patches of the image's grid."""

    head: Tensor  # float32 (grid_h * grid_w, sum of the head's channels)
    kmeans: Tensor  # float32 (grid_h * grid_w, channels of the baseline's level)
    top: int
    left: int
    grid_h: int
    grid_w: int
    flip: bool  # the tile is a mirror image, from left to right


class ScoreMaps(NamedTuple):
    """Score maps float32 ``(K, grid_h, grid_w)``, higher is better; eigenfunctions are logits."""

    ours: Tensor
    ours_kmeans: Tensor
    kmeans: Tensor
    eigenfunctions: Tensor  # (m, grid_h, grid_w)


@torch.inference_mode()
def score_maps(
    predictors: Predictors,
    windows: Sequence[Window],
    grid_h: int,
    grid_w: int,
    *,
    temperature: float,
    eigenfunctions: int,
) -> ScoreMaps:
    """Score every patch of one image with all predictors; overlapping windows are averaged.

    Args:
        windows: together they cover the grid; on the device of the head.
        grid_h, grid_w: patches of the image.
        temperature: "ours" scores softmax(logits / temperature).
        eigenfunctions: how many of the logits to return as maps, the first m.

    Raises:
        ValueError: a window's tokens do not fit the head, or a patch is in no window.
    """
    found = [_scores(predictors, window, temperature, eigenfunctions) for window in windows]
    places = [(window.top, window.left) for window in windows]
    merged = (
        merge_windows([(maps, *at) for maps, at in zip(same, places, strict=True)], grid_h, grid_w)
        for same in zip(*found, strict=True)
    )
    return ScoreMaps(*merged)


def _scores(
    predictors: Predictors, window: Window, temperature: float, eigenfunctions: int
) -> ScoreMaps:
    features, logits = predictors.head(window.head, [window.grid_h * window.grid_w])
    by_patch = (
        torch.softmax(logits / temperature, dim=1),
        torch.from_numpy(scores(predictors.ours_kmeans, features.cpu().numpy())),
        torch.from_numpy(scores(predictors.kmeans, window.kmeans.cpu().numpy())),
        logits[:, :eigenfunctions],
    )
    return ScoreMaps(*(_grid(values, window) for values in by_patch))


def _grid(values: Tensor, window: Window) -> Tensor:
    """Patches ``(n, K)`` -> map ``(K, grid_h, grid_w)``, mirrored back."""
    maps = values.T.reshape(-1, window.grid_h, window.grid_w)
    return maps.flip(2) if window.flip else maps

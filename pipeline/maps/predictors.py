"""The three predictors: tokens of one image -> a score map of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from pipeline.head.head import Head
from pipeline.head.kmeans import KMeans, scores
from pipeline.maps.merging import merge, merge_scores


class Predictors(NamedTuple):
    """What training leaves: the head, K-means on its features, K-means on one level's tokens.

    Attributes:
        segment_of: for each of the three the segment of each of its clusters, int64 ``(K,)``; empty
            where every cluster is a segment.
    """

    head: Head
    ours_kmeans: KMeans
    kmeans: KMeans
    segment_of: Mapping[str, np.ndarray] = MappingProxyType({})


class Window(NamedTuple):
    """The tokens of one tile, row after row of its grid; lengths in patches of the image's grid."""

    head: Tensor  # float32 (grid_h * grid_w, sum of the head's channels)
    kmeans: Tensor  # float32 (grid_h * grid_w, channels of the baseline's level)
    top: int
    left: int
    grid_h: int
    grid_w: int
    flip: bool  # the tile is a mirror image, from left to right


class Inputs(NamedTuple):
    """The cached levels that the predictors look at."""

    head: list[int | str]  # joined, in this order
    kmeans: int | str


def restore(
    manifest: Mapping[str, Any],
    state: Mapping[str, Tensor],
    centres: Mapping[str, Mapping[str, Any]],
    device: torch.device,
    merge_to: int | None = None,
) -> tuple[Inputs, Predictors]:
    """The predictors that training has left, and what they look at.

    Args:
        manifest: ``head`` (``levels``, and beside them the arguments of `Head`), and the choices
            of ``kmeans`` (its ``level``).
        state: the head's ``state_dict``.
        centres: by name the fields of each `KMeans` (ours_kmeans, kmeans), and the mean features of
            the head's own clusters (ours).
        device: where the head computes.
        merge_to: segments to merge the clusters of each to; None merges nothing.

    Raises:
        ValueError: there are fewer clusters than segments wanted.
    """
    levels = manifest["head"]["levels"]
    others = {name: value for name, value in manifest["head"].items() if name != "levels"}
    head = Head(**others)
    head.load_state_dict(state)
    if parametrize.is_parametrized(head.last):
        # The orthogonal weight is computed once instead of in every forward pass.
        parametrize.remove_parametrizations(head.last, "weight")
    head.eval().to(device)
    models = {name: KMeans(**centres[name]) for name in ("ours_kmeans", "kmeans")}
    names = () if merge_to is None else ("ours", *models)
    segment_of = {name: merge(centres[name]["centroids"], merge_to or 0) for name in names}
    inputs = Inputs(levels, manifest["kmeans"]["level"])
    return inputs, Predictors(head, **models, segment_of=segment_of)


def window(
    tokens: Mapping[int | str, np.ndarray],
    inputs: Inputs,
    corner: tuple[int, int],
    grid: tuple[int, int],
    flip: bool,
    device: torch.device,
) -> Window:
    """Put the tokens of one tile together.

    Args:
        tokens: by level, float16 ``(patches, C)``, rows of the grid one after the other.
        corner: row and column of the tile's first patch in the image's grid.
        grid: rows and columns of the tile, in patches.
        flip: the tile is a mirror image, from left to right.
        device: of the head.
    """
    joined = np.concatenate([tokens[level] for level in inputs.head], axis=1)
    return Window(
        torch.from_numpy(joined).to(device).float(),
        torch.from_numpy(tokens[inputs.kmeans]).float(),
        *corner,
        *grid,
        flip,
    )


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
    temperature: float | None,
    eigenfunctions: int,
) -> ScoreMaps:
    """Score every patch of one image with all predictors; overlapping windows are averaged.

    Clusters that are merged score as one segment, with the best of their scores.

    Args:
        windows: together they cover the grid; on the device of the head.
        grid_h, grid_w: patches of the image.
        temperature: "ours" scores softmax(logits / temperature); None scores the logits.
        eigenfunctions: how many of the logits to return as maps, the first m.

    Raises:
        ValueError: a window's tokens do not fit the head, or a patch is in no window.
    """
    scored = [_scores(predictors, window, temperature, eigenfunctions) for window in windows]
    places = [(window.top, window.left) for window in windows]
    merged = (
        merge_windows([(maps, *at) for maps, at in zip(same, places, strict=True)], grid_h, grid_w)
        for same in zip(*scored, strict=True)
    )
    maps = ScoreMaps(*merged)
    fewer = {
        name: merge_scores(getattr(maps, name), segment_of)
        for name, segment_of in predictors.segment_of.items()
    }
    return maps._replace(**fewer)


def _scores(
    predictors: Predictors, window: Window, temperature: float | None, eigenfunctions: int
) -> ScoreMaps:
    features, logits = predictors.head(window.head, [window.grid_h * window.grid_w])
    by_patch = (
        logits if temperature is None else torch.softmax(logits / temperature, dim=1),
        torch.from_numpy(scores(predictors.ours_kmeans, features.cpu().numpy())),
        torch.from_numpy(scores(predictors.kmeans, window.kmeans.cpu().numpy())),
        logits[:, :eigenfunctions],
    )
    return ScoreMaps(*(_grid(values, window) for values in by_patch))


def runner_up(scores: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Which cluster comes second at every patch of score maps ``(K, h, w)``, and by how much.

    Returns:
        Ids int64 ``(h, w)``, and the greatest score less the second, float32 ``(h, w)``.
    """
    best = scores.topk(2, dim=0)
    margins = best.values[0] - best.values[1]
    return best.indices[1].cpu().numpy(), margins.cpu().numpy()


def _grid(values: Tensor, window: Window) -> Tensor:
    """Patches ``(n, K)`` -> map ``(K, grid_h, grid_w)``, mirrored back."""
    maps = values.T.reshape(-1, window.grid_h, window.grid_w)
    return maps.flip(2) if window.flip else maps


def merge_windows(windows: Sequence[tuple[Tensor, int, int]], grid_h: int, grid_w: int) -> Tensor:
    """Average windows where they overlap.

    Args:
        windows: scores ``(K, h, w)`` with the row and the column, in patches, of their first patch
            in the grid. A mirrored window is mirrored back before.
        grid_h, grid_w: patches of the whole image.

    Returns:
        float32 ``(K, grid_h, grid_w)`` on the device of the windows.

    Raises:
        ValueError: a window reaches beyond the grid, or a patch is in no window.
    """
    first = windows[0][0]
    total = torch.zeros(len(first), grid_h, grid_w, device=first.device)
    count = torch.zeros(grid_h, grid_w, device=first.device)
    for maps, top, left in windows:
        bottom, right = top + maps.shape[1], left + maps.shape[2]
        if min(top, left) < 0 or bottom > grid_h or right > grid_w:
            raise ValueError(
                f"windows must lie in the grid of {grid_h} x {grid_w} patches, found rows "
                f"{top}-{bottom} and columns {left}-{right}"
            )
        total[:, top:bottom, left:right] += maps
        count[top:bottom, left:right] += 1
    holes = int((count == 0).sum())
    if holes:
        raise ValueError(
            f"the windows of an image must cover it, found {holes} of {grid_h * grid_w} patches in "
            "no window"
        )
    return total / count

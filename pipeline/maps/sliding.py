"""Sliding windows: scores of overlapping windows, averaged in the pixels of the resized image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.maps.upsampling import check_finite, positions

BUDGET = 64 << 20  # bytes of the scores in work, roughly
SIDE = 48  # px of a block of the resized image: larger ones leave more clusters, smaller cost calls


class Placed(NamedTuple):
    """Scores float32 ``(K, h, w)`` of a window, and its place in the resized image, in pixels."""

    scores: Tensor
    top: int
    left: int
    height: int
    width: int


def average(
    windows: Sequence[Placed], resized: tuple[int, int], size: tuple[int, int] | None = None
) -> Tensor:
    """Interpolate the scores of every window to its pixels, sum them and divide by the counts.

    Args:
        windows: together they cover the image.
        resized: height and width of the image that the windows were cut from, px.
        size: of the result, in which the windows then lie in proportion; None = ``resized``.

    Returns:
        float32 ``(K, *size)``.

    Raises:
        ValueError: a pixel is in no window.
    """
    height, width = size or resized
    down, right = height / resized[0], width / resized[1]
    total = torch.zeros(len(windows[0].scores), height, width)
    count = torch.zeros(height, width)
    for scores, top, left, tall, wide in windows:
        y, x = min(round(top * down), height - 1), min(round(left * right), width - 1)
        end_y = max(y + 1, round((top + tall) * down))
        end_x = max(x + 1, round((left + wide) * right))
        large = F.interpolate(scores[None].cpu().float(), (end_y - y, end_x - x), mode="bilinear")
        total[:, y:end_y, x:end_x] += large[0]
        count[y:end_y, x:end_x] += 1
    _check_cover(count)
    return total.div_(count)


def _check_cover(count: Tensor) -> None:
    if holes := int((count == 0).sum()):
        raise ValueError(
            f"the windows of an image must cover it, found {holes} of {count.numel()} pixels in "
            "no window"
        )


class _Seen(NamedTuple):
    """A window: scores ``(h, w, K)``, its top and left, and where its pixels lie among its patches.

    ``rows`` and ``columns`` are positions of pixels in patches, float64, ascending.
    """

    scores: np.ndarray
    top: int
    left: int
    rows: np.ndarray
    columns: np.ndarray


def sliding_argmax(
    windows: Sequence[Placed], resized: tuple[int, int], height: int, width: int,
    budget: int = BUDGET,
) -> np.ndarray:  # fmt: skip
    """Cluster ids at the pixels of the photo: `average`, interpolated to its size, then argmax.

    The same, block by block and without the clusters that cannot win in a block: no interpolated
    score leaves the range of the patches around it, and no average that of the windows.

    Args:
        resized: see `average`.
        height, width: of the photo, px.
        budget: bytes of the scores in work, roughly.

    Returns:
        uint16 ``(height, width)``, the lowest id among equals.

    Raises:
        ValueError: a score is not finite, or a pixel is in no window.
    """
    seen, count = [], torch.zeros(resized)
    for scores, top, left, tall, wide in windows:
        maps = scores.cpu().float().numpy()
        check_finite(maps)
        rows, columns = positions(maps.shape[1], tall), positions(maps.shape[2], wide)
        maps = np.ascontiguousarray(maps.transpose(1, 2, 0))
        seen.append(_Seen(maps, top, left, rows, columns))
        count[top : top + tall, left : left + wide] += 1
    _check_cover(count)
    down, right = positions(resized[0], height), positions(resized[1], width)
    side = min(SIDE, max(1, math.isqrt(budget // (8 * len(windows[0].scores)))))
    tall, wide = max(1, side * height // resized[0]), max(1, side * width // resized[1])
    ids = np.empty((height, width), np.uint16)
    for y in range(0, height, tall):
        for x in range(0, width, wide):
            ids[y : y + tall, x : x + wide] = _winners(
                seen, count.numpy(), down[y : y + tall], right[x : x + wide]
            )
    return ids


def _winners(
    seen: Sequence[_Seen], count: np.ndarray, down: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Ids in the block of the photo whose pixels lie there in the resized image."""
    rows, columns = _reach(down), _reach(right)
    parts = []
    for scores, top, left, tall, wide in seen:
        y = tall[max(rows.start - top, 0) : max(rows.stop - top, 0)]
        x = wide[max(columns.start - left, 0) : max(columns.stop - left, 0)]
        if len(y) and len(x):
            h, w = _reach(y), _reach(x)
            place = max(top - rows.start, 0), max(left - columns.start, 0)
            parts.append(_Seen(scores[h, w], *place, y - h.start, x - w.start))
    windows = count[rows, columns]
    able = _able([part.scores for part in parts], bool((windows == len(parts)).all()))
    if len(able) == 1:
        return able
    mean = np.zeros((*windows.shape, len(able)), np.float32)
    for scores, top, left, y, x in parts:
        large = _interpolated(scores[..., able], y, x)
        mean[top : top + len(y), left : left + len(x)] += large
    mean /= windows[..., None]
    return able[_interpolated(mean, down - rows.start, right - columns.start).argmax(axis=-1)]


def _reach(places: np.ndarray) -> slice:
    """The patches between which ascending positions lie; the end may be one too far."""
    return slice(int(places[0]), int(places[-1]) + 2)


def _interpolated(maps: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Maps ``(h, w, k)`` at positions ``(H,)`` and ``(W,)``: ``(H, W, k)``.

    Products and sums, not a matrix product: equal maps stay equal, whatever their ids.
    """
    for axis, places in enumerate((y, x)):
        first = places.astype(np.int64)
        left, right = (maps.take(first + i, axis=axis, mode="clip") for i in (0, 1))
        right -= left
        right *= np.expand_dims((places - first).astype(np.float32), (1 - axis, 2))
        maps = left + right
    return maps


def _able(scores: Sequence[np.ndarray], everywhere: bool) -> np.ndarray:
    """Ids, ascending, of the clusters that can win in a block.

    Args:
        scores: ``(h, w, K)`` of the patches that each window has there.
        everywhere: every window covers the whole block, so that the mean of their bounds is one.
    """
    least = np.stack([window.min(axis=(0, 1)) for window in scores])
    greatest = np.stack([window.max(axis=(0, 1)) for window in scores])
    low = least.mean(axis=0) if everywhere else least.min(axis=0)
    high = greatest.mean(axis=0) if everywhere else greatest.max(axis=0)
    rounding = 1e-5 * max(-least.min(), greatest.max())
    return np.flatnonzero(high >= low.max() - rounding)

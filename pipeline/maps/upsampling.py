"""From scores at patch grids to cluster ids at pixels, exactly and in bounded memory.

An image is covered by one window or by several that overlap. The scores of each window are
interpolated bilinearly to its pixels in a canvas and averaged there; the canvas is interpolated
bilinearly to the size of the label map, and each pixel takes the cluster of the greatest score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Box = tuple[int, int, int, int]

BUDGET = 64 << 20  # bytes of the scores in work, roughly
SIDE = 48  # px of a block of the canvas: larger ones leave more clusters, smaller ones cost calls


def average_windows(
    scores: Sequence[Tensor],
    boxes: Sequence[Box],
    canvas: tuple[int, int],
    size: tuple[int, int],
) -> Tensor:
    """Interpolate the scores of every window to its pixels, sum them, divide by the counts.

    Args:
        scores: of each window, float32 ``(K, h, w)``.
        boxes: of each window, px of the canvas; together they cover it.
        canvas: its height and width, px.
        size: height and width of the result, in which the boxes lie in proportion.

    Returns:
        float32 ``(K, *size)``.

    Raises:
        ValueError: a pixel is in no window.
    """
    down, right = size[0] / canvas[0], size[1] / canvas[1]
    total, count = torch.zeros(len(scores[0]), *size), torch.zeros(size)
    for maps, (top, left, height, width) in zip(scores, boxes, strict=True):
        y, x = min(round(top * down), size[0] - 1), min(round(left * right), size[1] - 1)
        end_y = max(y + 1, round((top + height) * down))
        end_x = max(x + 1, round((left + width) * right))
        large = F.interpolate(maps[None].cpu().float(), (end_y - y, end_x - x), mode="bilinear")
        total[:, y:end_y, x:end_x] += large[0]
        count[y:end_y, x:end_x] += 1
    _check_cover(count.numpy())
    return total.div_(count)


class _Window(NamedTuple):
    """Scores ``(h, w, K)`` of a window, and where it lies in the canvas.

    ``rows`` and ``columns`` are the positions of its pixels among its patches, float64, ascending.
    """

    scores: np.ndarray
    top: int
    left: int
    rows: np.ndarray
    columns: np.ndarray


def label_map(
    scores: Sequence[Tensor],
    boxes: Sequence[Box],
    canvas: tuple[int, int],
    size: tuple[int, int],
    budget: int = BUDGET,
) -> np.ndarray:
    """Return the cluster of the greatest score at every pixel, the lowest id among equals.

    The result equals the argmax of all K interpolated maps. It is computed block by block, without
    the clusters that cannot win in a block: an interpolated score never leaves the range of the
    patches around it, and a mean never leaves the range of its terms.

    Args:
        scores, boxes, canvas: as in `average_windows`; K <= 65536.
        size: height and width of the label map, px.
        budget: bytes of the scores in work, roughly.

    Returns:
        uint16 ``size``.

    Raises:
        ValueError: a score is not finite, or a pixel is in no window.
    """
    seen, count = [], np.zeros(canvas, np.float32)
    for maps, box in zip(scores, boxes, strict=True):
        seen.append(_window(maps, box))
        top, left, height, width = box
        count[top : top + height, left : left + width] += 1
    _check_cover(count)
    tall, wide = _block(scores[0].shape, boxes[0], canvas, size, budget)
    down, right = positions(canvas[0], size[0]), positions(canvas[1], size[1])
    ids = np.empty(size, np.uint16)
    for y in range(0, size[0], tall):
        for x in range(0, size[1], wide):
            block = slice(y, y + tall), slice(x, x + wide)
            ids[block] = _winners(seen, count, down[block[0]], right[block[1]], canvas == size)
    return ids


def check_finite(maps: np.ndarray) -> None:
    """Raise ValueError where a score is not finite."""
    if not np.isfinite(maps).all():
        raise ValueError(
            "scores to interpolate must be finite, found NaN or infinity: check the head "
            "(its loss curve) and the feature cache"
        )


def positions(cells: int, pixels: int) -> np.ndarray:
    """Return where the pixels of one side lie among its cells: float64 ``(pixels,)``, ascending.

    Pixel centres are as in ``F.interpolate`` with ``align_corners=False``. Beyond the outermost
    centres of cells the nearest cell counts.
    """
    if cells == pixels:
        return np.arange(pixels, dtype=np.float64)
    return ((np.arange(pixels) + 0.5) * cells / pixels - 0.5).clip(0, cells - 1)


def _check_cover(count: np.ndarray) -> None:
    if holes := int((count == 0).sum()):
        raise ValueError(
            f"the windows of an image must cover it, found {holes} of {count.size} pixels in "
            "no window"
        )


def _window(maps: Tensor, box: Box) -> _Window:
    values = maps.detach().cpu().float().numpy()
    check_finite(values)
    top, left, height, width = box
    rows, columns = positions(values.shape[1], height), positions(values.shape[2], width)
    return _Window(np.ascontiguousarray(values.transpose(1, 2, 0)), top, left, rows, columns)


def _block(
    shape: Sequence[int], box: Box, canvas: tuple[int, int], size: tuple[int, int], budget: int
) -> tuple[int, int]:
    """Return height and width of a block of the label map: at least a patch, within the budget."""
    clusters, rows, columns = shape
    patch = max(box[2] // rows, box[3] // columns)
    side = min(max(SIDE, patch), max(1, math.isqrt(budget // (8 * clusters))))
    return max(1, side * size[0] // canvas[0]), max(1, side * size[1] // canvas[1])


def _winners(
    seen: Sequence[_Window], count: np.ndarray, down: np.ndarray, right: np.ndarray, same: bool
) -> np.ndarray:
    """Return the ids of a block whose pixels lie there in the canvas, or ``same``: are its own."""
    rows, columns = _reach(down, same), _reach(right, same)
    parts = []
    for scores, top, left, tall, wide in seen:
        y = tall[max(rows.start - top, 0) : max(rows.stop - top, 0)]
        x = wide[max(columns.start - left, 0) : max(columns.stop - left, 0)]
        if len(y) and len(x):
            h, w = _reach(y), _reach(x)
            place = max(top - rows.start, 0), max(left - columns.start, 0)
            parts.append(_Window(scores[h, w], *place, y - h.start, x - w.start))
    number = count[rows, columns]
    able = _able([part.scores for part in parts], bool((number == len(parts)).all()))
    if len(able) == 1:
        return able
    mean = np.zeros((*number.shape, len(able)), np.float32)
    for scores, top, left, y, x in parts:
        mean[top : top + len(y), left : left + len(x)] += _interpolated(scores[..., able], y, x)
    mean /= number[..., None]
    if not same:
        mean = _interpolated(mean, down - rows.start, right - columns.start)
    return able[mean.argmax(axis=-1)]


def _reach(places: np.ndarray, same: bool = False) -> slice:
    """Return the cells between which ascending positions lie; the end may be one too far."""
    return slice(int(places[0]), int(places[-1]) + (1 if same else 2))


def _interpolated(maps: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Interpolate maps ``(h, w, k)`` at positions ``(H,)`` and ``(W,)``: ``(H, W, k)``.

    These are products and sums, not a matrix product: equal maps stay equal, whatever their ids.
    """
    for axis, places in enumerate((y, x)):
        first = places.astype(np.int64)
        left, right = (maps.take(first + i, axis=axis, mode="clip") for i in (0, 1))
        right -= left
        right *= np.expand_dims((places - first).astype(np.float32), (1 - axis, 2))
        maps = left + right
    return maps


def _able(scores: Sequence[np.ndarray], everywhere: bool) -> np.ndarray:
    """Return the ids, ascending, of the clusters that can win in a block.

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


def upsample_argmax(scores: Tensor, height: int, width: int, budget: int = BUDGET) -> np.ndarray:
    """Return the `label_map` of one score map ``(K, h, w)`` at ``height`` x ``width`` pixels."""
    size = height, width
    return label_map([scores], [(0, 0, *size)], size, size, budget)

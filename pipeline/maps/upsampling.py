"""From scores at patch grids to cluster ids at pixels, exactly and in bounded memory.

The tiles of a plan cover an image and may overlap. The scores of each are interpolated bilinearly
to its pixels in a canvas and averaged there; the canvas is interpolated bilinearly to the size of
the label map, and each pixel takes the cluster of the greatest score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.geometry import Box, Plan, grid

BUDGET = 64 << 20  # bytes of the scores in work, roughly
SIDE = 48  # px of a block of the canvas: larger ones leave more clusters, smaller ones cost calls


def average(plan: Plan, scores: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
    """Interpolate the scores of every tile to its pixels, sum them, divide by the counts.

    Args:
        plan: of the image.
        scores: of each tile, float32 ``(K, rows, columns)`` of its grid.
        size: height and width of the result, in which the tiles lie in proportion; None = canvas.

    Returns:
        float32 ``(K, *size)``; the scores of a single tile as they are.

    Raises:
        ValueError: a pixel is in no tile.
    """
    if len(plan.tiles) == 1:
        return scores[0]
    size = size or plan.canvas
    down, right = size[0] / plan.canvas[0], size[1] / plan.canvas[1]
    device = scores[0].device
    total, count = torch.zeros(len(scores[0]), *size, device=device), torch.zeros(size)
    for maps, (top, left, height, width) in zip(scores, plan.windows, strict=True):
        y, x = min(round(top * down), size[0] - 1), min(round(left * right), size[1] - 1)
        end_y = max(y + 1, round((top + height) * down))
        end_x = max(x + 1, round((left + width) * right))
        large = F.interpolate(maps[None].float(), (end_y - y, end_x - x), mode="bilinear")
        total[:, y:end_y, x:end_x] += large[0]
        count[y:end_y, x:end_x] += 1
    _check_cover(count.numpy())
    return total.div_(count.to(device))


def at_grid(plan: Plan, scores: Sequence[Tensor]) -> Tensor:
    """Return one score map at the patch grid of all that is seen: ``(K, rows, columns)``."""
    return average(plan, scores, grid((0, 0, *plan.resized), plan.patch))


class _Window(NamedTuple):
    """Scores ``(h, w, K)`` of a window, and where it lies in the canvas.

    ``rows`` and ``columns`` are the positions of its pixels among its patches, float64, ascending.
    """

    scores: np.ndarray
    top: int
    left: int
    rows: np.ndarray
    columns: np.ndarray


def label_map(plan: Plan, scores: Sequence[Tensor], budget: int = BUDGET) -> np.ndarray:
    """Return the cluster of the greatest score at every pixel, the lowest id among equals.

    The result equals the argmax of all K interpolated maps. It is computed block by block, without
    the clusters that cannot win in a block: an interpolated score never leaves the range of the
    patches around it, and a mean never leaves the range of its terms.

    Args:
        plan, scores: as in `average`; K <= 65536.
        budget: bytes of the scores in work, roughly.

    Returns:
        uint16 ``plan.size``.

    Raises:
        ValueError: a score is not finite, or a pixel is in no tile.
    """
    if scores[0].is_cuda:
        return label_map_of_all(plan, scores, 16 * budget)
    seen, count = [], np.zeros(plan.canvas, np.float32)
    for maps, box in zip(scores, plan.windows, strict=True):
        seen.append(_window(maps, box))
        top, left, height, width = box
        count[top : top + height, left : left + width] += 1
    _check_cover(count)
    canvas, size = plan.canvas, plan.size
    tall, wide = _block(scores[0].shape, plan, budget)
    down, right = positions(canvas[0], size[0]), positions(canvas[1], size[1])
    ids = np.empty(size, np.uint16)
    for y in range(0, size[0], tall):
        for x in range(0, size[1], wide):
            block = slice(y, y + tall), slice(x, x + wide)
            ids[block] = _winners(seen, count, down[block[0]], right[block[1]], canvas == size)
    return ids


def label_map_of_all(plan: Plan, scores: Sequence[Tensor], budget: int) -> np.ndarray:
    """Do as `label_map` on the scores' device, where all maps are interpolated, some at a time."""
    check_finite(torch.stack([maps.sum() for maps in scores]).cpu().numpy())
    pixels = max(plan.size[0] * plan.size[1], plan.canvas[0] * plan.canvas[1])
    some = max(1, budget // (8 * pixels))
    best, ids = torch.empty(0), torch.empty(0)
    for first in range(0, len(scores[0]), some):
        mean = average(plan, [maps[first : first + some] for maps in scores]).float()
        greatest = F.interpolate(mean[None], plan.size, mode="bilinear")[0].max(dim=0)
        if not first:
            best, ids = greatest
            continue
        better = greatest.values > best  # else the lower id
        best = torch.where(better, greatest.values, best)
        ids = torch.where(better, greatest.indices + first, ids)
    return ids.cpu().numpy().astype(np.uint16)


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


def _block(shape: Sequence[int], plan: Plan, budget: int) -> tuple[int, int]:
    """Return height and width of a block of the label map: at least a patch, within the budget."""
    clusters, rows, columns = shape
    _, _, height, width = plan.windows[0]
    patch = max(height // rows, width // columns)
    side = min(max(SIDE, patch), max(1, math.isqrt(budget // (8 * clusters))))
    return tuple(max(1, side * a // b) for a, b in zip(plan.size, plan.canvas, strict=True))  # type: ignore[return-value]


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
    size, box = (height, width), (0, 0, height, width)
    return label_map(Plan(1, size, box, [box], size, size), [scores], budget)

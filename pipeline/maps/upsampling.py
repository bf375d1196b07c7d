"""From scores at the patch grid to cluster ids at the image's pixels."""

from __future__ import annotations

from functools import reduce

import numpy as np
from torch import Tensor


def upsample_argmax(
    scores: Tensor, height: int, width: int, budget_bytes: int = 64 << 20
) -> np.ndarray:
    """Interpolate all K score maps bilinearly and take the argmax, without storing K large maps.

    The same as ``F.interpolate(scores, (height, width), mode="bilinear").argmax`` over K. Between
    four patch centres an interpolated score lies between the least and the greatest of its four
    corners. So only clusters whose greatest corner reaches some other cluster's least corner can
    win there; the others, nearly all of them, are left out, and the result stays exact.

    Args:
        scores: float32 ``(K, h, w)``, higher is better, K <= 65536.
        height, width: size of the result in pixels.
        budget_bytes: memory for the interpolated scores of the pixels in work, roughly.

    Returns:
        uint16 ``(height, width)``, the lowest id among equals.

    Raises:
        ValueError: a score is not finite.
    """
    maps = scores.detach().cpu().float().numpy()
    check_finite(maps)
    edged = np.pad(maps, ((0, 0), (0, 1), (0, 1)), mode="edge")
    patches = np.ascontiguousarray(edged.transpose(1, 2, 0))  # (h + 1, w + 1, K)
    able = _able(patches)
    rows, down = _squares(maps.shape[1], height)
    columns, right = _squares(maps.shape[2], width)
    out = np.empty((height, width), np.uint16)
    for i, j in np.ndindex(able.shape[:2]):
        ids = np.flatnonzero(able[i, j])
        block = out[rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
        if len(ids) == 1 or not block.size:
            block[:] = ids[0]
            continue
        x = right[columns[j] : columns[j + 1]]
        step = max(1, budget_bytes // (4 * len(ids) * len(x)))
        for start in range(0, len(block), step):
            y = down[rows[i] :][start : start + step][: len(block) - start]
            corners = patches[i : i + 2, j : j + 2].take(ids, axis=2)
            block[start : start + step] = ids[_winners(corners, y, x)]
    return out


def check_finite(maps: np.ndarray) -> None:
    """Raise ValueError where a score is not finite."""
    if not np.isfinite(maps).all():
        raise ValueError(
            "scores to interpolate must be finite, found NaN or infinity: check the head "
            "(its loss curve) and the feature cache"
        )


def _able(patches: np.ndarray) -> np.ndarray:
    """Which clusters can win in each square: ``(h + 1, w + 1, K)`` -> bool ``(h, w, K)``.

    Square (i, j) reaches from patch centre (i, j) to (i + 1, j + 1).
    """
    corners = (patches[:-1, :-1], patches[:-1, 1:], patches[1:, :-1], patches[1:, 1:])
    least, greatest = reduce(np.minimum, corners), reduce(np.maximum, corners)
    return greatest >= least.max(axis=2, keepdims=True)


def positions(patches: int, pixels: int) -> np.ndarray:
    """Where the pixels of one side lie, in patches: float64 ``(pixels,)`` in 0 .. patches - 1.

    Pixel centres as in ``F.interpolate`` with ``align_corners=False``; outside the outermost patch
    centres the nearest one counts.
    """
    return ((np.arange(pixels) + 0.5) * patches / pixels - 0.5).clip(0, patches - 1)


def _squares(patches: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """`positions` as (first pixel of each square and the end, offset in [0, 1))."""
    position = positions(patches, pixels)
    square = position.astype(np.int64)
    first = np.searchsorted(square, np.arange(patches + 1))
    return first, (position - square).astype(np.float32)


def _winners(corners: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Index of the greatest of m scores ``(2, 2, m)``, interpolated at ``(rows,)``, ``(columns,)``.

    Products and sums, not a matrix product: no value depends on how many rows are in work.
    """
    left, right = corners[0][:, None] + y[:, None] * (corners[1] - corners[0])[:, None]
    values = x[None, :, None] * (right - left)[:, None]
    values += left[:, None]
    return values.argmax(axis=-1)

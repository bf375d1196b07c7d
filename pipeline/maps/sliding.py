"""Sliding windows: scores of overlapping windows, averaged in the pixels of the resized image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.maps.upsampling import check_finite

BUDGET = 64 << 20  # bytes of the clusters in work, roughly


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
    if holes := int((count == 0).sum()):
        raise ValueError(
            f"the windows of an image must cover it, found {holes} of {height * width} pixels in "
            "no window"
        )
    return total.div_(count)


def sliding_argmax(
    windows: Sequence[Placed], resized: tuple[int, int], height: int, width: int,
    budget: int = BUDGET,
) -> np.ndarray:  # fmt: skip
    """Cluster ids at the pixels of the photo: `average`, interpolated to its size, then argmax.

    A few clusters are in work at a time, so memory does not grow with K.

    Args:
        resized: see `average`.
        height, width: of the photo, px.
        budget: bytes of the scores in work, roughly.

    Returns:
        uint16 ``(height, width)``, the lowest id among equals.

    Raises:
        ValueError: a score is not finite, or a pixel is in no window.
    """
    for window in windows:
        check_finite(window.scores.cpu().numpy())
    at_a_time = max(1, budget // (4 * max(height * width, resized[0] * resized[1])))
    best = torch.full((height, width), -torch.inf)
    ids = torch.zeros((height, width), dtype=torch.int32)
    for first in range(0, len(windows[0].scores), at_a_time):
        some = slice(first, first + at_a_time)
        mean = average([w._replace(scores=w.scores[some]) for w in windows], resized)
        values, winners = F.interpolate(mean[None], (height, width), mode="bilinear")[0].max(dim=0)
        ahead = values > best
        ids[ahead] = winners[ahead].int() + first
        best = torch.where(ahead, values, best)
    return ids.numpy().astype(np.uint16)

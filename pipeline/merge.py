"""Merging the score maps of overlapping windows into one map of the whole image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
    for scores, top, left in windows:
        bottom, right = top + scores.shape[1], left + scores.shape[2]
        if min(top, left) < 0 or bottom > grid_h or right > grid_w:
            raise ValueError(
                f"windows must lie in the grid of {grid_h} x {grid_w} patches, found rows "
                f"{top}-{bottom} and columns {left}-{right}: extract the features again"
            )
        total[:, top:bottom, left:right] += scores
        count[top:bottom, left:right] += 1
    holes = int((count == 0).sum())
    if holes:
        raise ValueError(
            f"the windows of an image must cover it, found {holes} of {grid_h * grid_w} patches in "
            "no window: lower `extract.stride` to at most `extract.window` and extract again"
        )
    return total / count

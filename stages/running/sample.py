"""Sampled rows of many tiles in one array."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from stages.running.progress import track


def gather(
    tiles: Sequence[int] | np.ndarray,
    plan: Sequence[np.ndarray],
    channels: int,
    rows_of: Callable[[int], np.ndarray],
    title: str,
) -> np.ndarray:
    """Gather the planned rows of every tile: float32 ``(n, channels)``.

    One array takes them from the first: many small ones, kept among large ones that come and go,
    would fragment the heap.

    Args:
        plan: of each tile the wanted rows (`sample_plan`).
        rows_of: gives all rows of a tile, ``(patches, channels)``; not called where none is wanted.
        title: of the progress bar.
    """
    firsts = np.cumsum([0, *map(len, plan)])
    found = np.empty((firsts[-1], channels), np.float32)
    for tile, rows, first in zip(track(tiles, title), plan, firsts[:-1], strict=True):
        if len(rows):
            found[first : first + len(rows)] = rows_of(tile)[rows]
    return found

"""Sampled rows of many tiles in one array."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from stages.progress import track


def gather(
    tiles: Sequence[int] | np.ndarray,
    plan: Sequence[np.ndarray],
    channels: int,
    rows_of: Callable[[int], np.ndarray],
    title: str,
) -> np.ndarray:
    """The planned rows of every tile, one after the other: float32 ``(n, channels)``.

    They go into one array from the first: the small ones of many tiles, kept between the large ones
    that come and go, would tear the heap to pieces.

    Args:
        plan: of each tile the rows that are wanted (`sample_plan`).
        rows_of: a tile to all its rows, ``(patches, channels)``; not asked for a tile without any
            wanted.
        title: of the progress bar.
    """
    firsts = np.cumsum([0, *map(len, plan)])
    found = np.empty((firsts[-1], channels), np.float32)
    for tile, rows, first in zip(track(tiles, title), plan, firsts[:-1], strict=True):
        if len(rows):
            found[first : first + len(rows)] = rows_of(tile)[rows]
    return found

"""Sampled rows of many tiles in one array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np

from stages.running.ahead import ahead
from stages.running.progress import track


def gather(
    tiles: Sequence[int] | np.ndarray,
    plan: Sequence[np.ndarray],
    channels: int,
    rows_of: Callable[[int], np.ndarray],
    title: str,
    threads: int = 1,
) -> np.ndarray:
    """Gather the planned rows of every tile: float32 ``(n, channels)``.

    One array takes them from the first: many small ones, kept among large ones that come and go,
    would fragment the heap.

    Args:
        plan: of each tile the wanted rows (`sample_plan`).
        rows_of: gives all rows of a tile, ``(patches, channels)``; not called where none is wanted.
        title: of the progress bar.
        threads: that call ``rows_of``, ahead of the copying.
    """
    firsts = np.cumsum([0, *map(len, plan)])
    found = np.empty((firsts[-1], channels), np.float32)
    wanted = [place for place, rows in enumerate(plan) if len(rows)]

    def planned(place: int) -> np.ndarray:
        return rows_of(int(tiles[place]))[plan[place]]

    with closing(ahead(planned, wanted, threads=threads, waiting=threads)) as made:
        for place, rows in track(made, title, len(wanted)):
            found[firsts[place] : firsts[place + 1]] = rows
    return found

"""What one looks at to name clusters: small maps, regions, likeness, and the order to name in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

LONGEST_RUN = 255  # cells: a run's length is one byte
SMALLEST = 4  # cells of a region that is worth a look
LIKES = 6  # clusters in a group of like ones, on average


class Regions(NamedTuple):
    """Connected parts of clusters in one small map, an entry each.

    Attributes:
        cluster: int64 ``(n,)`` ids.
        area: int64 ``(n,)`` cells.
        margin: float64 ``(n,)``, mean over the region's cells: how far its cluster is ahead.
        box: int64 ``(n, 4)`` top, left, bottom, right in cells, the last two beyond the region.
    """

    cluster: np.ndarray
    area: np.ndarray
    margin: np.ndarray
    box: np.ndarray


def shrink(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Values ``(H, W)`` at the centres of ``height x width`` cells (nearest neighbour)."""
    rows, columns = (
        ((np.arange(cells) + 0.5) * side / cells).astype(np.int64)
        for cells, side in zip((height, width), values.shape, strict=True)
    )
    return values[rows[:, None], columns]


def runs(ids: np.ndarray) -> bytes:
    """A map ``(h, w)`` of ids below 65536, row after row, as runs of three bytes each.

    The id's low byte, its high byte, and how many cells it holds for (1 to `LONGEST_RUN`).
    """
    flat = ids.ravel().astype(np.int64)
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = np.diff(np.append(starts, flat.size))
    pieces = -(-lengths // LONGEST_RUN)
    values = np.repeat(flat[starts], pieces)
    sizes = np.full(len(values), LONGEST_RUN)
    sizes[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * LONGEST_RUN
    return np.stack([values & 255, values >> 8, sizes], axis=1).astype(np.uint8).tobytes()


def regions(ids: np.ndarray, margins: np.ndarray) -> Regions:
    """The connected parts (by edges) of every cluster in a map, but those below `SMALLEST`.

    Args:
        ids: integers ``(h, w)``.
        margins: floats ``(h, w)``, by how much the winning cluster is ahead of the second.
    """
    found = []
    for cluster in np.unique(ids).tolist():
        parts, n = ndimage.label(ids == cluster)
        areas = np.bincount(parts.ravel(), minlength=n + 1)[1:]
        sums = np.bincount(parts.ravel(), margins.ravel().astype(np.float64), n + 1)[1:]
        for part, (down, right) in enumerate(ndimage.find_objects(parts)):
            if areas[part] >= SMALLEST:
                box = down.start, right.start, down.stop, right.stop
                found.append((cluster, areas[part], sums[part] / areas[part], *box))
    table = np.array(found, dtype=np.float64).reshape(-1, 7)
    whole = table.astype(np.int64)
    return Regions(whole[:, 0], whole[:, 1], table[:, 2], whole[:, 3:])


def examples(
    photo: np.ndarray, area: np.ndarray, margin: np.ndarray, n: int
) -> tuple[list[int], list[int]]:
    """Typical and least typical regions of one cluster: indices of at most ``n`` each.

    Looked at are the larger regions of the cluster, from the median area on, of every photo the
    one that covers most. Typical are those with the greatest margin, least typical those with the
    least, which comes first; no region is both.

    Args:
        photo, area, margin: ``(m,)`` of the cluster's regions.
    """
    if not len(area):
        return [], []
    by_area = np.lexsort((photo, -area))
    _, first = np.unique(photo[by_area], return_index=True)
    largest = by_area[np.sort(first)]
    large = largest[area[largest] >= np.median(area)]
    ranked = large[np.argsort(-margin[large], kind="stable")].tolist()
    typical = ranked[: min(n, (len(ranked) + 1) // 2)]
    return typical, ranked[len(typical) :][-n:][::-1]


def likeness(pairs: np.ndarray) -> np.ndarray:
    """How often two clusters compete for a patch: symmetric float64 ``(k, k)`` in 0..1.

    Of the patches of one, the share where the other comes second, averaged over both directions;
    0 on the diagonal.

    Args:
        pairs: integers ``(k, k)``: patches by the cluster that won them, and the next one.
    """
    others = pairs * (1.0 - np.eye(len(pairs)))
    share = others / np.maximum(others.sum(axis=1, keepdims=True), 1)
    return (share + share.T) / 2


def together(areas: np.ndarray) -> np.ndarray:
    """How far two clusters share their photos: float64 ``(k, k)`` in 0..1, 0 on the diagonal.

    Photos with both over photos with either (Jaccard).

    Args:
        areas: ``(photos, k)``, 0 where a cluster is not in a photo.
    """
    present = (areas > 0).astype(np.float64)
    both = present.T @ present
    counts = np.diag(both)
    either = counts[:, None] + counts - both
    shared = both / np.maximum(either, 1)
    np.fill_diagonal(shared, 0)
    return shared


def naming_order(share: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The order to name clusters in: what covers most first, and like beside like.

    Clusters are grouped by average linkage of 1 - likeness, `LIKES` to a group on average. The
    group whose mean cluster covers most comes first, and in a group the largest cluster. Clusters
    that cover nothing are left out.

    Args:
        share: float64 ``(k,)``, covered by each.
        like: symmetric float64 ``(k, k)`` in 0..1.

    Returns:
        int64 ids.
    """
    used = np.flatnonzero(share > 0)
    if len(used) < 2:
        return used
    distance = 1 - like[np.ix_(used, used)]
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average")
    group = fcluster(tree, -(-len(used) // LIKES), "maxclust")
    mean = np.bincount(group, share[used]) / np.maximum(np.bincount(group), 1)
    return used[np.lexsort((used, -share[used], group, -mean[group]))]


def photos_to_show(areas: np.ndarray, limit: int) -> np.ndarray:
    """Which photos to show: rising int64 positions, at most ``limit``.

    All where there is room; otherwise for each cluster the photo that it covers most, then photos
    evenly spaced.

    Args:
        areas: ``(photos, k)``.
    """
    n = len(areas)
    if n <= limit:
        return np.arange(n)
    best = areas.argmax(axis=0)[np.argsort(-areas.sum(axis=0), kind="stable")]
    spaced = np.linspace(0, n - 1, limit).round().astype(np.int64)
    wanted = list(dict.fromkeys([*best.tolist(), *spaced.tolist()]))
    return np.sort(np.array(wanted[:limit], dtype=np.int64))


def nearest(rows: Sequence[float] | np.ndarray, n: int) -> list[int]:
    """The indices of the ``n`` greatest values above 0, the greatest first."""
    values = np.asarray(rows)
    order = np.argsort(-values, kind="stable")[:n]
    return [int(i) for i in order if values[i] > 0]

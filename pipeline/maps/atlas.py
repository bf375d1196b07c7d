"""Views of clusters for naming them: small maps, regions, parts, likeness, order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform

SMALLEST = 4  # cells of a region that is worth a look
LEAST_PART = 0.02  # of a cluster: smaller parts go to the largest
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


def components(ids: np.ndarray) -> tuple[int, np.ndarray]:
    """The connected parts (by edges) of equal ids: how many, and int32 ``(h, w)`` which."""
    places = np.arange(ids.size).reshape(ids.shape)
    below, right = ids[1:] == ids[:-1], ids[:, 1:] == ids[:, :-1]
    rows = np.concatenate([places[:-1][below], places[:, :-1][right]])
    columns = np.concatenate([places[1:][below], places[:, 1:][right]])
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(ids.size, ids.size))
    n, parts = connected_components(graph, directed=False)
    return n, parts.reshape(ids.shape)


def regions(ids: np.ndarray, margins: np.ndarray) -> Regions:
    """The connected parts (by edges) of every cluster in a map, but those below `SMALLEST`.

    Args:
        ids: integers ``(h, w)``.
        margins: floats ``(h, w)``, by how much the winning cluster is ahead of the second.
    """
    n, parts = components(ids)
    areas = np.bincount(parts.ravel(), minlength=n)
    means = np.bincount(parts.ravel(), margins.ravel().astype(np.float64), n) / areas
    clusters = np.zeros(n, np.int64)
    clusters[parts.ravel()] = ids.ravel()
    boxes = ndimage.find_objects(parts + 1)
    found = [
        (clusters[part], areas[part], means[part], *(side.start for side in box),
         *(side.stop for side in box))
        for part in np.argsort(clusters, kind="stable").tolist()
        if areas[part] >= SMALLEST and (box := boxes[part])
    ]  # fmt: skip
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


def sample(photo: np.ndarray, area: np.ndarray, n: int) -> list[int]:
    """Draw a fair sample of a cluster's regions: indices of at most ``n``, of different photos.

    Systematic: the regions are put in the order of their photos, and every n-th part of their
    total area gives the region that lies there. So a region is drawn with a chance in proportion
    to its area, and neighbours in a film are drawn together only where there is nothing else.

    Args:
        photo, area: ``(m,)`` of the cluster's regions.
    """
    order = np.lexsort((-area, photo))
    ends = np.cumsum(area[order])
    if not len(ends):
        return []
    places = (np.arange(n) + 0.5) * ends[-1] / n
    drawn = order[np.unique(np.searchsorted(ends, places, side="right"))]
    _, first = np.unique(photo[drawn], return_index=True)
    return drawn[first].tolist()


def divide(like: np.ndarray, pairs: np.ndarray, n: int) -> np.ndarray:
    """Divide every cluster into at most ``n`` parts, by the cluster that is the best other one.

    Rivals of a cluster that are like each other stand for one part (average linkage of
    1 - likeness): a cluster of cars and signs has other rivals on the road than before the sky.

    Args:
        like: symmetric float64 ``(k, k)`` in 0..1.
        pairs: integers ``(k, k)``: patches by the cluster that won them, and the next one.

    Returns:
        int64 ``(k, k)``: the part of a cluster (row) where a rival (column) is the best other
        one; part 0 is the largest.
    """
    parts = np.zeros(pairs.shape, np.int64)
    distance = 1 - like
    np.fill_diagonal(distance, 0)
    for cluster, counts in enumerate(pairs * (1 - np.eye(len(pairs), dtype=np.int64))):
        met = np.flatnonzero(counts)
        if len(met) > 1:
            tree = linkage(squareform(distance[np.ix_(met, met)], checks=False), "average")
            group = fcluster(tree, n, "maxclust") - 1
            size = np.bincount(group, counts[met])
            rank = np.argsort(np.argsort(-size, kind="stable"))
            rank[size < LEAST_PART * size.sum()] = 0
            parts[cluster, met] = rank[group]
    return parts


class Moments(NamedTuple):
    """Sums over the patches of every cluster: how many, and of m scores and their squares."""

    patches: np.ndarray  # (k,)
    first: np.ndarray  # (k, m)
    second: np.ndarray  # (k, m)

    @classmethod
    def none(cls, k: int, m: int) -> Moments:
        """Sums over no patch."""
        return cls(np.zeros(k), np.zeros((k, m)), np.zeros((k, m)))

    def add(self, ids: np.ndarray, scores: np.ndarray) -> None:
        """Add patches: their clusters ``(n,)`` and scores ``(n, m)``."""
        np.add.at(self.patches, ids, 1)
        np.add.at(self.first, ids, scores)
        np.add.at(self.second, ids, scores**2)

    def spread(self) -> np.ndarray:
        """Measure how mixed clusters are, float64 ``(k,)``: variance over that of all patches.

        0: all patches have the same scores; 1: they differ as any patches of the data set do.
        """
        n = np.maximum(self.patches, 1)[:, None]
        own = (self.second / n - (self.first / n) ** 2).sum(axis=1)
        total = max(self.patches.sum(), 1)
        mean = self.first.sum(axis=0) / total
        whole = (self.second.sum(axis=0) / total - mean**2).sum()
        return np.maximum(own, 0) / whole if whole > 0 else np.zeros(len(own))


def layout(like: np.ndarray) -> np.ndarray:
    """Places of clusters in a square, like near like: float64 ``(k, 2)`` in 0..1.

    The second and third eigenvectors of the likeness graph's normalised Laplacian; each axis is
    then spread evenly, for its ranks tell more than its few outliers.

    Args:
        like: symmetric float64 ``(k, k)`` in 0..1.
    """
    k = len(like)
    if k < 3:
        return np.full((k, 2), 0.5) + np.arange(k)[:, None] / 4
    weight = like + 0.01 / k  # connects what nothing connects
    root = np.sqrt(weight.sum(axis=1))
    vectors = np.linalg.eigh(weight / root[:, None] / root)[1][:, -2:-4:-1] / root[:, None]
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(axis=0), [0, 1]] < 0, -1, 1)
    return np.argsort(np.argsort(vectors, axis=0, kind="stable"), axis=0) / (k - 1)


def likeness(pairs: np.ndarray) -> np.ndarray:
    """Measure how often two clusters compete for a patch: symmetric float64 ``(k, k)`` in 0..1.

    Of the patches of one, the share where the other comes second, averaged over both directions;
    0 on the diagonal.

    Args:
        pairs: integers ``(k, k)``: patches by the cluster that won them, and the next one.
    """
    others = pairs * (1.0 - np.eye(len(pairs)))
    share = others / np.maximum(others.sum(axis=1, keepdims=True), 1)
    return (share + share.T) / 2


def together(areas: np.ndarray) -> np.ndarray:
    """Measure how far two clusters share photos: float64 ``(k, k)`` in 0..1, 0 on the diagonal.

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
    """Choose the photos to show: rising int64 positions, at most ``limit``.

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

"""Label maps of clusters that a person has named, and names carried over to other clusters."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from pipeline.maps.atlas import shrink


def rivals(ids: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """The best other cluster at every pixel: integers like ``ids``.

    Args:
        ids: clusters ``(H, W)``.
        seconds: ``(h, w)``, the clusters that came second at the patch grid.
    """
    first = shrink(shrink(ids, *seconds.shape), *ids.shape)
    return np.where(first == ids, shrink(seconds, *ids.shape), first).astype(ids.dtype)


def carry(codes: np.ndarray, ids: np.ndarray, counts: np.ndarray, least: int) -> None:
    """Count which names the pixels of new clusters had, in place.

    Args:
        codes: integers ``(h, w)``, the names of a photo in an older map of any resolution.
        ids: ``(H, W)`` new clusters of the same photo.
        counts: float64 ``(k, codes)``; each photo adds 1 in all.
        least: the code of column 0.
    """
    pixels = shrink(codes, *ids.shape).astype(np.int64) - least
    flat = ids.astype(np.int64) * counts.shape[1] + pixels
    counts += np.bincount(flat.ravel(), minlength=counts.size).reshape(counts.shape) / ids.size


def named(
    ids: np.ndarray,
    seconds: np.ndarray | None,
    values: np.ndarray,
    splits: Mapping[int, np.ndarray],
) -> np.ndarray:
    """The label map of named clusters: uint8 ``(H, W)``.

    Args:
        ids: clusters ``(H, W)``.
        seconds: ``(h, w)`` at the patch grid, needed by splits.
        values: uint8 ``(k,)``, label values of clusters.
        splits: of clusters whose parts have names of their own, uint8 ``(k,)`` by their rival.
    """
    labels = values[ids]
    if splits and seconds is not None:
        rival = rivals(ids, seconds)
        for cluster, by_rival in splits.items():
            own = ids == cluster
            labels[own] = by_rival[rival[own]]
    return labels


def region_pixels(cells: np.ndarray, ids: np.ndarray, cluster: int | None) -> np.ndarray:
    """The pixels of a region: bool like ``ids``.

    Args:
        cells: bool ``(h, w)``, the region in a small map.
        ids: clusters ``(H, W)``.
        cluster: the region's, where ``ids`` are the clusters that it was found in: its edges then
            follow the pixels. None: the edges are those of the cells.
    """
    if cluster is None:
        return shrink(cells, *ids.shape)
    return shrink(ndimage.binary_dilation(cells), *ids.shape) & (ids == cluster)

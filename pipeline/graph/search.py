"""Approximate nearest neighbours over a whole data set: an inverted file of FAISS.

The patches lie in cells around the centres of a coarse K-means, as float16, and a query looks into
the cells with the most similar centres. The number of cells for a wanted recall is measured on
queries whose neighbours were searched exactly.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import faiss
import numpy as np

from pipeline.device import gpu_count
from pipeline.graph.knn import GPU_MAX_K, one_at_a_time, recall

EXACT = 50_000  # patches up to which there is one cell, so that the search is exact
SAMPLE_PER_CELL = 64  # patches that the coarse K-means sees for each centre
GPU_MAX_PROBES = 2048  # FAISS's own limit; more cells than these hold a million patches
ITERATIONS = 8  # of the coarse K-means; further ones hardly change the recall


def cell_count(n: int) -> int:
    """Count the cells for n patches: both cells and patches in a cell grow with sqrt(n)."""
    return 1 if n <= EXACT else round(2 * n**0.5)


def empty_index(sample: np.ndarray, cells: int, seed: int) -> faiss.IndexIVF:
    """Make an index without patches, its cells fitted to a sample.

    Args:
        sample: float32 ``(m, c)``, rows of length 1, m >= cells.
        cells: number of cells.
        seed: of the first centres.
    """
    channels, metric = sample.shape[1], faiss.METRIC_INNER_PRODUCT
    index: Any = faiss.index_factory(channels, f"IVF{cells},SQfp16", metric)
    index.cp.niter, index.cp.seed = ITERATIONS, seed
    index.cp.min_points_per_centroid = 1  # few points are the caller's choice, not a warning
    index.train(sample)
    return index


class ExactTop:
    """The exact neighbours of some queries, among rows that come block by block.

    Args:
        queries: float32 ``(q, c)``, rows of length 1.
        own: int64 ``(q, 2)``: ids from the first to before the second are not searched.
        k: neighbours.
    """

    def __init__(self, queries: np.ndarray, own: np.ndarray, k: int) -> None:
        self._queries, self._own = queries, own
        self.indices = np.full((len(queries), k), -1, np.int64)
        self._cosines = np.full((len(queries), k), -np.inf, np.float32)

    def add(self, first: int, rows: np.ndarray) -> None:
        """Compare rows ``(n, c)`` with the ids first, first + 1, ... with all queries."""
        ids = np.arange(first, first + len(rows))
        cosines = self._queries @ rows.T
        cosines[(ids >= self._own[:, :1]) & (ids < self._own[:, 1:])] = -np.inf
        k = self.indices.shape[1]
        both = np.hstack([self._cosines, cosines])
        best = np.argpartition(-both, k - 1, axis=1)[:, :k]
        former = np.take_along_axis(self.indices, np.minimum(best, k - 1), axis=1)
        self.indices = np.where(best < k, former, first + best - k)
        self._cosines = np.take_along_axis(both, best, axis=1)


def choose_probes(
    index: faiss.IndexIVF, queries: np.ndarray, own: np.ndarray, exact: np.ndarray, wanted: float
) -> tuple[int, float]:
    """Find the least power of two of cells whose search has the wanted recall.

    Args:
        queries, own: as `ExactTop` takes them.
        exact: int64 ``(q, k)``, what it gives.
        wanted: recall, at most 1; with 1 all cells are looked into.

    Returns:
        Cells to look into, and the recall that was measured with so many.
    """
    probes = index.nlist if wanted == 1 else 1
    while True:
        measured = recall(search(index, queries, own, exact.shape[1], probes)[0], exact)
        if measured >= wanted or probes == index.nlist:
            return probes, measured
        probes = min(2 * probes, index.nlist)


def search(
    index: faiss.Index, queries: np.ndarray, own: np.ndarray, k: int, probes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k most similar patches of every query, its own ones left out.

    Args:
        index: of `empty_index`, filled, or its copy on a GPU.
        queries: float32 ``(q, c)``, rows of length 1.
        own: int64 ``(q, 2)``: ids from the first to before the second are not searched: the query
            itself, or all patches of its image.
        k: neighbours.
        probes: cells to look into.

    Returns:
        Ids int64 ``(q, k)``, -1 where the cells hold too few, and cosines float32 ``(q, k)``,
        falling along each row.

    Raises:
        ValueError: a GPU would have to search more neighbours at once than it can.
    """
    widest = int((own[:, 1] - own[:, 0]).max())
    if widest == 1 or not isinstance(index, faiss.IndexIVF):
        return _search_more(index, queries, own, k, probes, k + widest)
    ids, cosines = np.empty((len(own), k), np.int64), np.empty((len(own), k), np.float32)
    for first, stop in np.unique(own, axis=0).tolist():
        rows = np.flatnonzero(own[:, 0] == first)
        others = faiss.IDSelectorNot(faiss.IDSelectorRange(first, stop))
        options = faiss.SearchParametersIVF(nprobe=probes, sel=others)  # type: ignore[call-arg]
        cosines[rows], ids[rows] = index.search(queries[rows], k, params=options)
    return ids, cosines


def _search_more(
    index: faiss.Index, queries: np.ndarray, own: np.ndarray, k: int, probes: int, more: int
) -> tuple[np.ndarray, np.ndarray]:
    """Search as `search` does: find more neighbours than wanted and drop the own ones."""
    if not isinstance(index, faiss.IndexIVF) and more > GPU_MAX_K:  # GPUs know no selector
        raise ValueError(
            f"a GPU searches at most {GPU_MAX_K} neighbours at once, found {more} ({k} and the "
            "patches of an image)"
        )
    options = faiss.SearchParametersIVF(nprobe=probes)  # type: ignore[call-arg]
    with nullcontext() if isinstance(index, faiss.IndexIVF) else one_at_a_time:
        cosines, ids = index.search(queries, more, params=options)
    dropped = (ids >= own[:, :1]) & (ids < own[:, 1:])
    kept = np.argsort(dropped, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(ids, kept, axis=1), np.take_along_axis(cosines, kept, axis=1)


def to_gpu(index: faiss.IndexIVF, probes: int) -> faiss.Index:
    """Copy the index to the first GPU.

    Args:
        probes: cells that a search will look into.

    Returns:
        The index itself where there is no GPU, or where it cannot look into so many cells.
    """
    if not gpu_count() or probes > GPU_MAX_PROBES:
        return index
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)

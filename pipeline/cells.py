"""Neighbour search over more rows than fit into memory: rows kept by cell, a few cells searched.

The cells are those of a coarse K-means, as in an inverted file. Every query looks into the cells
whose centres are most similar to it; with all cells the search is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np

from pipeline.kmeans import centres
from pipeline.knn import not_self, top

EXACT_ROWS = 50_000  # up to here one cell, so exact: searching all of them takes seconds
CELL_ROWS = 512  # rows in a cell, about: enough for matrix products to run at full speed
MAX_CELLS = 4096  # beyond, the cells grow instead
SAMPLE_PER_CELL = 32  # rows that the coarse K-means sees for each centre
ITERATIONS = 8  # of the coarse K-means; further ones hardly change the recall


def cell_count(n: int) -> int:
    """How many cells n rows are kept in."""
    return 1 if n <= EXACT_ROWS else min(n // CELL_ROWS, MAX_CELLS)


def coarse_centres(sample: np.ndarray, cells: int, seed: int, *, gpu: bool = True) -> np.ndarray:
    """The centres of the cells: unit rows float32 (n, c), n >= cells -> float32 (cells, c)."""
    if cells == 1:
        return sample[:1]
    return centres(sample, cells, iterations=ITERATIONS, spherical=True, seed=seed, gpu=gpu)


def probes_for(cells: np.ndarray, ranked: np.ndarray, recall: float) -> int:
    """The fewest cells each query has to look into to find the share `recall` of its neighbours.

    cells : integer (queries, k), the cell of each exact neighbour of a sample of queries.
    ranked : integer (queries, m), all m cells, nearest to the query first.
    """
    ranks = np.sort(_ranks(cells, ranked), axis=None)
    return int(ranks[max(0, int(np.ceil(recall * ranks.size)) - 1)]) + 1


def recall_of(cells: np.ndarray, ranked: np.ndarray, probes: int) -> float:
    """The share of the neighbours that lie in the first `probes` cells; arguments as above."""
    return float((_ranks(cells, ranked) < probes).mean())


def search_cells(
    rows: np.ndarray,
    own: np.ndarray,
    probed: np.ndarray | None,
    count: int,
    read: Callable[[int], tuple[np.ndarray, np.ndarray]],
    k: int,
    *,
    gpu: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k most similar other rows of every query, in the cells it looks into.

    rows : float32 (n, c), unit rows, the queries. own : int64 (n,), their ids.
    probed : integer (n, probes), the cells of each query; None stands for all of them.
    count : number of cells.
    read : cell -> ids int64 (m,) and unit rows float32 (m, c) of its members, m >= 0. It is called
        once for each cell, so that one cell is in memory at a time.

    Returns ids int64 (n, k), -1 where the cells hold too few, and cosines float32 (n, k), falling.
    """
    best = RunningTop(rows, own, k)
    if probed is None:
        for cell in range(count):
            best.add(*read(cell), gpu=gpu)
        return best.result()
    order = np.argsort(probed, axis=None, kind="stable")
    cells, starts = np.unique(probed.ravel()[order], return_index=True)
    looking = np.split(order // probed.shape[1], starts[1:])
    for cell, queries in zip(cells, looking, strict=True):
        best.add(*read(int(cell)), queries, gpu=gpu)
    return best.result()


class RunningTop:
    """The k most similar other rows of every query among all rows that were added so far."""

    def __init__(self, queries: np.ndarray, own: np.ndarray, k: int) -> None:
        """queries : float32 (n, c), unit rows; own : int64 (n,), their ids."""
        self._queries, self._own, self._k = queries, own, k
        self._heap = faiss.ResultHeap(len(queries), k + 1, keep_max=True)

    def add(
        self,
        ids: np.ndarray,
        rows: np.ndarray,
        some: np.ndarray | None = None,
        *,
        gpu: bool = True,
    ) -> None:
        """Compare rows (m, c) of these ids (m,), m >= 0, with all queries, or with `some` (j,)."""
        if not len(ids):
            return
        some = np.arange(len(self._queries)) if some is None else some
        found, cosines = top(self._queries[some], rows, min(self._k + 1, len(ids)), gpu=gpu)
        self._heap.add_result_subset(some, cosines, ids[found])

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids int64 (n, k), -1 where too few were added, and cosines float32 (n, k), falling."""
        self._heap.finalize()
        others = not_self(self._heap.I, self._own)
        return self._heap.I[others].reshape(-1, self._k), self._heap.D[others].reshape(-1, self._k)


def _ranks(cells: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    """Position of each cell (queries, k) in the ranking of its query (queries, m)."""
    positions = np.empty_like(ranked)
    np.put_along_axis(positions, ranked, np.arange(ranked.shape[1])[None, :], axis=1)
    return np.take_along_axis(positions, cells, axis=1)

"""Graphs over the patches of a group of images and their kernel (Eq. 2-4)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from pipeline.graph.knn import not_self


def feature_graph(indices: np.ndarray, cosines: np.ndarray) -> csr_array:
    """Build the symmetrised feature graph (A + A^T) / 2 of Eq. 2.

    Args:
        indices: integer ``(n, k)``, neighbours of each patch; -1 is none.
        cosines: float32 ``(n, k)``; negative ones are clamped to 0, so they leave no edge.

    Returns:
        A canonical float32 ``(n, n)`` matrix.
    """
    n = len(indices)
    edge = (indices >= 0) & (cosines > 0)
    indptr = np.zeros(n + 1, dtype=np.int32)
    np.cumsum(edge.sum(axis=1), out=indptr[1:])
    halves = cosines[edge].astype(np.float32) / 2
    directed = csr_array((halves, indices[edge].astype(np.int32), indptr), shape=(n, n))
    # Transposing sorts the columns of each row in linear time; only then is the sum fast.
    transposed = directed.T.tocsr()
    return transposed + transposed.T.tocsr()


def inside(indices: np.ndarray, runs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Number neighbours anew inside some runs of patches of a larger graph.

    Args:
        indices: integer ``(n, k)``, -1 for none; the rows are the patches of the runs, in order.
        runs: first patch and number of patches of each run; no two overlap.

    Returns:
        int64 ``(n, k)``: positions among the patches of all runs, -1 for neighbours outside.
    """
    firsts, sizes = (np.array(part) for part in zip(*runs, strict=True))
    begins = np.cumsum(sizes) - sizes  # in the new numbering
    order = np.argsort(firsts)
    run = order[np.searchsorted(firsts[order], indices, side="right") - 1]
    offset = indices - firsts[run]
    return np.where((offset >= 0) & (offset < sizes[run]), begins[run] + offset, -1)


def pixel_edges(
    rgb: np.ndarray, height: int, width: int, settings: Sequence[tuple[int, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Build the pixel graph of one tile (Eq. 3): binary, symmetric, a union of graphs.

    Args:
        rgb: float32 ``(height * width, 3)`` in [0, 1], row by row on the patch grid.
        settings: (neighbours, distance weight) of each graph in the union; neighbours is lowered to
            height * width - 1 on smaller tiles.

    Returns:
        The edges in CSR form: indptr int64 ``(height * width + 1,)``, indices int32 ``(edges,)``.

    Raises:
        ValueError: the colours do not fill the grid.
    """
    n = height * width
    if rgb.shape != (n, 3):
        raise ValueError(
            f"a pixel graph needs one RGB row per patch: ({n}, 3) for a {height} x {width} grid, "
            f"found {rgb.shape}: down-sample the image to its patch grid"
        )
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    place = np.stack([x.ravel(), y.ravel()], axis=1)
    union = csr_array((n, n), dtype=np.float32)
    for k, weight in settings:
        directed = _neighbour_matrix(np.hstack([rgb, weight * place]), min(k, n - 1))
        union = union + directed + directed.T.tocsr()
    return union.indptr.astype(np.int64), union.indices.astype(np.int32)


def block_diagonal(graphs: Sequence[tuple[np.ndarray, np.ndarray]]) -> csr_array:
    """Join the pixel graphs of a group's tiles, (indptr, indices) each, into one matrix.

    Returns float32 ones (n, n), n the patches of all tiles in the given order.
    """
    patches = np.cumsum([0] + [len(indptr) - 1 for indptr, _ in graphs])
    edges = np.cumsum([0] + [len(indices) for _, indices in graphs])
    indptr = np.concatenate([[0]] + [p[1:] + e for (p, _), e in zip(graphs, edges, strict=False)])
    indices = np.concatenate([i + n for (_, i), n in zip(graphs, patches, strict=False)])
    ones = np.ones(edges[-1], dtype=np.float32)
    # int32 throughout: scipy widens every index to the wider of the two arrays.
    joined = (ones, indices.astype(np.int32), indptr.astype(np.int32))
    return csr_array(joined, shape=(patches[-1], patches[-1]))


def normalise(graph: csr_array) -> csr_array:
    """Give D^-1/2 A D^-1/2 of a symmetric graph ``(n, n)``; isolated nodes keep empty rows."""
    degrees = graph.sum(axis=1, dtype=np.float64)
    isolated = degrees == 0
    factors = np.where(isolated, 0.0, 1 / np.sqrt(np.where(isolated, 1.0, degrees)))
    factors = factors.astype(np.float32)
    # Both factors first: their product is the same from either end, so symmetry stays exact.
    weights = graph.data * (np.repeat(factors, np.diff(graph.indptr)) * factors[graph.indices])
    return csr_array((weights, graph.indices, graph.indptr), shape=graph.shape)


def kernel(graph: csr_array, pixel_graph: csr_array, alpha: float) -> csr_array:
    """Give kappa = D^-1/2 A D^-1/2 + alpha * D~^-1/2 A~ D~^-1/2 (Eq. 4), float32 ``(n, n)``.

    Args:
        graph, pixel_graph: symmetric ``(n, n)`` over the same patches.
        alpha: weight of the second.
    """
    if graph.shape != pixel_graph.shape:
        raise ValueError(
            "the feature graph and the pixel graph must cover the same patches, found "
            f"{graph.shape[0]} and {pixel_graph.shape[0]}: build both from the same tiles"
        )
    return normalise(graph) + normalise(pixel_graph) * np.float32(alpha)


def kernel_on_device(
    indices: np.ndarray,
    cosines: np.ndarray,
    pixel_graph: csr_array,
    alpha: float,
    device: torch.device | str,
) -> torch.Tensor:
    """Build kappa on a device, where sorting edges costs less than scipy's sums on a core.

    Args:
        indices, cosines: as of `feature_graph`.
        pixel_graph, alpha: as of `kernel`.

    Returns:
        ``kernel(feature_graph(indices, cosines), pixel_graph, alpha)`` up to rounding, sparse CSR
        float32 ``(n, n)``.
    """
    n = len(indices)
    columns, weights = (torch.from_numpy(part).to(device) for part in (indices, cosines))
    edge = (columns >= 0) & (weights > 0)
    ends = torch.stack([edge.nonzero()[:, 0], columns[edge].long()])
    halves = (weights[edge] / 2).repeat(2)
    graph = _normalised(torch.cat([ends, ends.flip(0)], dim=1), halves, n)
    near = to_torch(pixel_graph, device).to_sparse_coo()
    pixels = _normalised(near.indices(), near.values(), n)
    joined = (graph + pixels * alpha).coalesce().to_sparse_csr()
    return _csr(joined.crow_indices().int(), joined.col_indices().int(), joined.values(), (n, n))


def _normalised(ends: torch.Tensor, weights: torch.Tensor, n: int) -> torch.Tensor:
    """Sum the weights of equal edges ``(2, edges)``, and do as `normalise` to the graph."""
    graph = torch.sparse_coo_tensor(ends, weights, (n, n), check_invariants=False).coalesce()
    ends, weights = graph.indices(), graph.values()
    degrees = torch.zeros(n, dtype=torch.float64, device=weights.device)
    degrees.index_add_(0, ends[0], weights.double())
    factors = torch.where(degrees > 0, 1 / degrees.sqrt(), 0.0).float()
    weights = weights * (factors[ends[0]] * factors[ends[1]])
    return torch.sparse_coo_tensor(ends, weights, (n, n), is_coalesced=True, check_invariants=False)


def to_torch(matrix: csr_array, device: torch.device | str) -> torch.Tensor:
    """Copy a scipy matrix into a sparse CSR tensor on a device."""
    indptr, indices, data = (
        torch.from_numpy(part).to(device) for part in (matrix.indptr, matrix.indices, matrix.data)
    )
    return _csr(indptr, indices, data, matrix.shape)


def _csr(
    indptr: torch.Tensor, indices: torch.Tensor, data: torch.Tensor, shape: tuple[int, int]
) -> torch.Tensor:
    with warnings.catch_warnings():
        # torch announces once that its sparse CSR layout is in beta.
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return torch.sparse_csr_tensor(indptr, indices, data, size=shape, check_invariants=False)


def _neighbour_matrix(points: np.ndarray, k: int) -> csr_array:
    # Row i has a one at each of the k nearest other rows of points (n, channels).
    n = len(points)
    nearest = cKDTree(points).query(points, [*range(1, k + 2)])[1]
    ends = np.arange(n + 1, dtype=np.int32) * k
    ones = np.ones(n * k, dtype=np.float32)
    matrix = csr_array(
        (ones, nearest[not_self(nearest, np.arange(n))].astype(np.int32), ends), shape=(n, n)
    )
    matrix.sort_indices()
    return matrix

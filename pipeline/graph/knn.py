"""Exact nearest neighbours of patch features by cosine similarity."""

from __future__ import annotations

import threading
from functools import cache

import faiss
import numpy as np
import torch

from pipeline.device import gpu_count

GPU_MAX_K = 2048  # FAISS's own limit; torch makes a larger search on the GPU
BLOCK_PRODUCTS = 1 << 27  # products of float64 that it holds at once, 1 GB
UNIT_TOLERANCE = 1e-2  # loose enough for rows normalised before a float16 round trip


def neighbour_count(k: int | float, n: int) -> int:
    """Count the neighbours of each of n points.

    Args:
        k: a count (int) or a fraction of n (float in (0, 1), rounded, at least 1).

    Raises:
        ValueError: k is neither, or the count is not below n.
    """
    if isinstance(k, bool) or (isinstance(k, float) and not 0 < k < 1) or k <= 0:
        raise ValueError(
            "the neighbours must be a count of at least 1 (int) or a fraction between 0 and 1 "
            f"(float), found {k!r}"
        )
    count = max(1, round(k * n)) if isinstance(k, float) else int(k)
    _check_count(count, n)
    return count


def nearest(features: np.ndarray, k: int, *, gpu: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Find the k most similar other rows of every row by exact search.

    Args:
        features: float32 ``(n, c)``, every row of unit L2 norm, so that inner product = cosine.
        k: neighbours per row, below n.
        gpu: search on the GPU where FAISS has one; False keeps the search on the CPU.

    Returns:
        Indices int32 ``(n, k)``, never the row itself (its duplicates count as others), and cosines
        float32 ``(n, k)``, falling along each row.

    Raises:
        ValueError: k >= n, features that are not finite, or rows that are not of unit norm.
    """
    _check_count(k, len(features))
    rows = np.ascontiguousarray(features, dtype=np.float32)
    _check_unit_rows(rows)
    indices, cosines = top(rows, rows, k + 1, gpu=gpu)
    others = not_self(indices, np.arange(len(indices)))
    return indices[others].reshape(-1, k).astype(np.int32), cosines[others].reshape(-1, k)


def top(
    queries: np.ndarray, rows: np.ndarray, k: int, *, gpu: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k rows of greatest inner product with each query, by exact search.

    Args:
        queries: float32 ``(n, c)``.
        rows: float32 ``(m, c)``, m >= k.
        gpu: as in `nearest`.

    Returns:
        Positions int64 ``(n, k)`` and inner products float32 ``(n, k)``, falling along each row.
    """
    if not gpu or not gpu_count():
        products, indices = faiss.knn(queries, rows, k, metric=faiss.METRIC_INNER_PRODUCT)
    elif k > GPU_MAX_K:
        return top_in_blocks(queries, rows, k, "cuda")
    else:
        with one_at_a_time:
            products, indices = faiss.knn_gpu(
                _resources(), queries, rows, k, metric=faiss.METRIC_INNER_PRODUCT
            )
    return indices, products


def top_in_blocks(
    queries: np.ndarray, rows: np.ndarray, k: int, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Do as `top` by torch on a device, for any k: all products of some queries at a time."""
    # In float64, for training lets float32 products lose bits (TF32) in the whole process.
    base = torch.from_numpy(rows).to(device).double().T
    found = []
    for block in torch.from_numpy(queries).split(max(1, BLOCK_PRODUCTS // len(rows))):
        products, indices = (block.to(device).double() @ base).topk(k)
        found.append((indices.cpu().numpy(), products.float().cpu().numpy()))
    indices, products = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return indices, products


def not_self(indices: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Mark the k entries of each row that are not the row's own id.

    Among duplicates the row can stand anywhere, or be missing; then the last entry goes.

    Args:
        indices: integer ``(n, k + 1)``, neighbours of each point, best first, self included.
        own: integer ``(n,)``, the ids of the points.

    Returns:
        bool ``(n, k + 1)`` with exactly k marks a row.
    """
    keep = indices != own[:, None]
    keep[keep.all(axis=1), -1] = False
    return keep


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Average over rows the share of the exact neighbours that a search finds.

    Args:
        found: integer ``(n, j)``; the order within a row does not count.
        exact: integer ``(n, k)``.
    """
    if len(found) != len(exact):
        raise ValueError(
            "recall compares the same points: one row each, "
            f"found {len(found)} rows for {len(exact)} exact ones; search for the same queries"
        )
    rows = zip(found, exact, strict=True)
    return float(np.mean([np.isin(truth, answer).mean() for answer, truth in rows]))


one_at_a_time = threading.Lock()  # threads may not use FAISS's memory at once


@cache
def _resources() -> faiss.StandardGpuResources:
    """FAISS's memory on the GPU, over a GB: reserved once, not for each search or thread."""
    return faiss.StandardGpuResources()


def _check_count(k: int, n: int) -> None:
    if not 1 <= k < n:
        raise ValueError(
            f"each patch needs at least 1 and fewer neighbours than its group has patches, found "
            f"k = {k} for n = {n} patches"
        )


def _check_unit_rows(features: np.ndarray) -> None:
    norms = np.sqrt(np.einsum("nc,nc->n", features, features))
    if not np.isfinite(norms).all():
        bad = int(np.flatnonzero(~np.isfinite(norms))[0])
        raise ValueError(
            f"features must be finite, found NaN or infinity in row {bad} of {len(features)}: "
            "their extraction overflowed or was damaged"
        )
    off = np.abs(norms - 1) > UNIT_TOLERANCE
    if off.any():
        bad = int(np.flatnonzero(off)[0])
        raise ValueError(
            f"features must have rows of unit L2 norm, found norm {norms[bad]:.4g} in row {bad} "
            f"of {len(features)}: divide each row by its norm"
        )

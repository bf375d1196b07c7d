"""Unit rows and PCA whitening."""

from __future__ import annotations

import numpy as np

BLOCK = 16384  # rows that are worked on at a time: copies of all would be the peak of memory


def unit_rows(values: np.ndarray) -> np.ndarray:
    """Scale rows to length 1, float32 ``(n, c)``; zero rows stay zero."""
    found = np.empty_like(values)
    for start in range(0, len(values), BLOCK):
        own = slice(start, start + BLOCK)
        lengths = np.linalg.norm(values[own], axis=1, keepdims=True)
        np.divide(values[own], np.maximum(lengths, np.finfo(np.float32).tiny), out=found[own])
    return found


def whitening(points: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit PCA whitening to float32 ``(n, c)``: mean ``(c,)`` and projection ``(c, components)``.

    ``(points - mean) @ projection`` has the identity as covariance. Eigenvalues below 1e-7 of the
    largest are noise: their directions are damped, not blown up to unit variance.
    """
    mean = points.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((points.shape[1], points.shape[1]))
    for start in range(0, len(points), BLOCK):
        block = points[start : start + BLOCK] - mean
        covariance += block.T @ block / len(points)
    eigenvalues, vectors = np.linalg.eigh(covariance)  # ascending
    tiny = max(1e-7 * eigenvalues[-1], np.finfo(np.float32).tiny)
    scale = 1 / (np.maximum(eigenvalues, 0) + tiny) ** 0.5
    projection = (vectors * scale)[:, ::-1][:, :components]
    return mean.astype(np.float32), np.ascontiguousarray(projection, np.float32)

"""Estimates of how long K-means and the objective take, told before hours pass."""

from __future__ import annotations

import time

import numpy as np

from cache.store.artefact import amount
from stages.running.progress import duration

WORTH_A_WORD = 60.0  # seconds
ITERATIONS = 20  # of K-means
_PROBE = 1024  # rows, channels and columns of the product that tells how fast this machine is


def kmeans_words(points: int, clusters: int, channels: int, runs: int) -> str:
    """Say how long a fit to so many points takes; "" where it is less than a minute.

    Args:
        runs: how many K-means of this size there are.
    """
    seconds = 2.0 * points * clusters * channels * ITERATIONS * runs / _rate()
    if seconds < WORTH_A_WORD:
        return ""
    return (
        f"K-means of {points} patches and {clusters} clusters, {runs} times, takes about "
        f"{duration(seconds)} of this machine's CPU, and a training step compares all pairs of "
        f"clusters ({amount(4 * clusters**2)}): fewer `clusters` take less."
    )


def _rate() -> float:
    """Operations a second in a product of matrices in float32, measured."""
    values = np.ones((_PROBE, _PROBE), np.float32)
    values @ values
    began = time.perf_counter()
    values @ values
    return 2.0 * _PROBE**3 / max(time.perf_counter() - began, 1e-6)

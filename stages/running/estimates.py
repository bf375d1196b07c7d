"""Estimates of how long K-means, the objective and CRFs take, told before hours pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from cache.store.artefact import amount
from stages.running.progress import duration

WORTH_A_WORD = 60.0  # seconds
ITERATIONS = 20  # of K-means
CLUSTERS = 32  # that take part in the CRF of a map: 20 to 50 of 64 did
_SIDE = 126  # px of the map whose CRF tells how fast this machine is
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


def refinement_words(
    refine: Callable[..., Any],
    photo: np.ndarray,
    predictors: int,
    points: int,
    device: torch.device,
) -> str:
    """Say how long a CRF takes on the maps of some predictors; "" where it is less than a minute.

    Args:
        refine: the CRF, one of `pipeline.maps.crf.CRFS`.
        photo: uint8 ``(H, W, 3)``, one of those that the CRF will look at.
        points: at which the CRF works, in all images together.
    """
    scores = torch.randn(CLUSTERS, 18, 18, generator=torch.Generator().manual_seed(0)).to(device)
    image = np.array(Image.fromarray(photo).resize((_SIDE, _SIDE)))
    began = time.perf_counter()
    refine(scores, _SIDE, _SIDE, image)
    seconds = (time.perf_counter() - began) * predictors * points / _SIDE**2
    if seconds < WORTH_A_WORD:
        return ""
    return (
        f"the CRF of {predictors} maps of each image takes about {duration(seconds)} on this "
        f"machine's {device.type} where {CLUSTERS} clusters of a map take part: `segment.crf` none "
        "leaves it out."
    )


def _rate() -> float:
    """Operations a second in a product of matrices in float32, measured."""
    values = np.ones((_PROBE, _PROBE), np.float32)
    values @ values
    began = time.perf_counter()
    values @ values
    return 2.0 * _PROBE**3 / max(time.perf_counter() - began, 1e-6)

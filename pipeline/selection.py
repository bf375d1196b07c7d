"""Choice of the images to label: by their clusters, without a label."""

from __future__ import annotations

import numpy as np

LEAST = 0.01  # of an image: what a cluster must cover to be shown by it


def most_typical(areas: np.ndarray, n: int) -> np.ndarray:
    """The images whose clusters are most like those of the whole set.

    Likeness is the cosine between the shares of the clusters in the image and their means.

    Args:
        areas: ``(images, K)``, pixels or cells.
        n: images to choose, at most all.

    Returns:
        int64 ``(n,)`` positions, the most typical first.
    """
    share = _shares(areas)
    mean = share.mean(axis=0)
    cosine = share @ mean / (np.linalg.norm(share, axis=1) * np.linalg.norm(mean))
    return np.argsort(-cosine, kind="stable")[:n]


def most_different(areas: np.ndarray, n: int) -> np.ndarray:
    """Images that together show what covers most: each adds most to those before.

    An image shows a cluster that covers `LEAST` of it. Greedily, the next image is the one whose
    clusters that no former shows cover most of the whole set; once all are shown it begins again.

    Args:
        areas: ``(images, K)``, pixels or cells.
        n: images to choose, at most all.

    Returns:
        int64 ``(n,)`` positions, in the order of choice.
    """
    share = _shares(areas)
    shows, worth = share >= LEAST, share.mean(axis=0)
    chosen: list[int] = []
    missing = worth.copy()
    while len(chosen) < min(n, len(areas)):
        gain = shows @ missing
        gain[chosen] = -1
        if gain.max() <= 0 and (missing < worth).any():
            missing = worth.copy()
            continue
        chosen.append(int(gain.argmax()))
        missing[shows[chosen[-1]]] = 0
    return np.array(chosen, dtype=np.int64)


def _shares(areas: np.ndarray) -> np.ndarray:
    return areas / areas.sum(axis=1, keepdims=True)

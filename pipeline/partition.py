"""The groups of images that share one feature graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def partition(
    images: Sequence[int], size: int, rounds: int, generator: np.random.Generator
) -> list[list[np.ndarray]]:
    """Cut the images into groups, afresh in each of `rounds` rounds.

    images : ids, each standing for one image (or tile).
    size : images a group holds at most. The number of groups is the least that respects it, and
        their sizes differ by at most one, so that no group ends up with a handful of images and a
        far denser graph than its peers.

    Returns rounds x groups of int64 (images,) ids, rising within a group. Every round holds every
    id once; rounds mix the companions anew. Raises ValueError for nothing to cut.
    """
    if not len(images) or size < 1 or rounds < 1:
        raise ValueError(
            "a partition needs at least one image, one image per group and one round, found "
            f"{len(images)} images, `graph.group_images` = {size}, `graph.rounds` = {rounds}"
        )
    ids = np.asarray(images, dtype=np.int64)
    groups = -(-len(ids) // size)
    return [
        [np.sort(group) for group in np.array_split(generator.permutation(ids), groups)]
        for _ in range(rounds)
    ]

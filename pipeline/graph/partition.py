"""The groups of images that share a feature graph, and how the patches of a split are numbered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array


def partition(
    images: Sequence[int], size: int, rounds: int, generator: np.random.Generator
) -> list[list[np.ndarray]]:
    """Cut the images into groups, afresh in each round.

    Args:
        images: ids, each standing for one image (or tile).
        size: images a group holds at most. The number of groups is the least that respects it, and
            their sizes differ by at most one, so that no group ends up with a handful of images
            and a far denser graph than its peers.
        rounds: independent partitions.

    Returns:
        Rounds x groups of int64 ``(images,)`` ids, rising within a group. Every round holds every
        id once; rounds mix the companions anew.

    Raises:
        ValueError: there is nothing to cut.
    """
    if not len(images) or size < 1 or rounds < 1:
        raise ValueError(
            "a partition needs at least one image, one image per group and one round, found "
            f"{len(images)} images, {size} a group, {rounds} rounds"
        )
    ids = np.asarray(images, dtype=np.int64)
    groups = -(-len(ids) // size)
    return [
        [np.sort(group) for group in np.array_split(generator.permutation(ids), groups)]
        for _ in range(rounds)
    ]


def follow(
    counts: csr_array, size: int, rounds: int, generator: np.random.Generator
) -> list[list[np.ndarray]]:
    """Cut the images into groups of neighbours: a batch that sees most edges of its patches.

    A group begins with an image drawn at random and takes, one by one, the image that most edges
    join to those it holds (of equals the first), or one at random where no edge leads on.

    Args:
        counts: ``(images, images)``, edges between the patches of two images.
        size, rounds: as in `partition`; so are the sizes of the groups.

    Returns:
        Rounds x groups of int64 ``(images,)`` positions, rising within a group.
    """
    images = counts.shape[0]
    sizes = [len(part) for part in np.array_split(np.arange(images), -(-images // size))]
    return [_follow_once(counts, sizes, generator.permutation(images)) for _ in range(rounds)]


def _follow_once(counts: csr_array, sizes: list[int], order: np.ndarray) -> list[np.ndarray]:
    free = np.ones(len(order), bool)
    groups, waiting = [], iter(order)
    for size in sizes:
        joined = np.zeros(len(order))
        group: list[int] = []
        while len(group) < size:
            candidates = np.where(free, joined, 0)
            best = int(candidates.argmax())
            if not candidates[best]:
                best = int(next(image for image in waiting if free[image]))
            free[best] = False
            group.append(best)
            row = slice(counts.indptr[best], counts.indptr[best + 1])
            joined[counts.indices[row]] += counts.data[row]
        groups.append(np.sort(np.array(group, np.int64)))
    return groups


def strongest(counts: csr_array, most: int) -> csr_array:
    """Keep so many of the greatest entries of each row ``(n, m)``, of equals the first."""
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    order = np.lexsort((counts.indices, -counts.data, rows))
    rank = np.arange(len(order)) - counts.indptr[rows]
    kept = np.sort(order[rank < most])
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows[kept], minlength=counts.shape[0]))])
    return csr_array((counts.data[kept], counts.indices[kept], indptr), shape=counts.shape)


def share_inside(
    counts: csr_array, totals: np.ndarray, rounds: Sequence[Sequence[np.ndarray]]
) -> float:
    """The share of the edges of its patches that a group holds, on average over all groups.

    Args:
        counts: as in `follow`; where it lacks the rarest, the share is a little higher than told.
        totals: ``(images,)``, all edges of each image's patches.
        rounds: groups of positions of images.
    """
    shares = []
    for group in (group for groups in rounds for group in groups):
        rows = counts[group]
        inside = np.isin(rows.indices, group)
        shares.append(rows.data[inside].sum() / max(totals[group].sum(), 1))
    return float(np.mean(shares))


class Numbering(NamedTuple):
    """How the patches of a split are numbered, tile after tile, and cut into blocks.

    Attributes:
        tiles, sizes, firsts, blocks: of each tile its id, patches, first patch and block.
        owner: of each tile the position of its image among the images of the split.
        block_firsts: first patch of each block, and the number of patches.
    """

    tiles: np.ndarray
    sizes: np.ndarray
    firsts: np.ndarray
    blocks: np.ndarray
    owner: np.ndarray
    block_firsts: np.ndarray

    @classmethod
    def of(cls, tiles: np.ndarray, sizes: list[int], images: np.ndarray, limit: int) -> Numbering:
        """Tiles in this order, with the ascending ids of their images.

        A block is full at ``limit`` patches.
        """
        ends = np.cumsum(sizes)
        firsts = ends - sizes
        _, blocks = np.unique(firsts // limit, return_inverse=True)
        starts = firsts[np.searchsorted(blocks, np.arange(blocks[-1] + 1))]
        _, owner = np.unique(images, return_inverse=True)
        return cls(tiles, np.asarray(sizes), firsts, blocks, owner, np.append(starts, ends[-1]))

    def tile_of(self, patches: np.ndarray) -> np.ndarray:
        """Position of the tile that each patch, given by its number, lies in."""
        return np.searchsorted(self.firsts, patches, side="right") - 1

    def image_of(self, patches: np.ndarray) -> np.ndarray:
        """First number and the number after the last of the patches of each one's image ``(n, 2)``.

        The tiles of an image follow each other.
        """
        image = self.owner[self.tile_of(patches)]
        first, last = (np.searchsorted(self.owner, image, side=side) for side in ("left", "right"))
        return np.stack([self.firsts[first], self.firsts[last - 1] + self.sizes[last - 1]], axis=1)

"""The groups of tiles that share a feature graph, and how the patches of a split are numbered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

ROUNDS = 2  # of stored groups that epochs take in turn


def round_count(epochs: int, views: int) -> int:
    """Count the rounds of groups to store: one for an epoch, as many as `ROUNDS` or the views."""
    return min(epochs, max(ROUNDS, views))


def group_count(sizes: Sequence[Sequence[int]], most: int) -> int:
    """Count the groups that tiles are cut into, the same for every view.

    Args:
        sizes: of each view the patches of its tiles.
        most: patches of a group. A group holds one tile at least, however large.

    Raises:
        ValueError: there is nothing to cut.
    """
    if not sizes or not all(sizes) or most < 1:
        raise ValueError(
            f"groups need tiles in every view, of a patch at least, found {[*map(len, sizes)]} "
            f"tiles and groups of {most} patches"
        )
    wanted = max(-(-sum(view) // most) for view in sizes)
    return min(wanted, *(sum(view) // max(view) for view in sizes))


def cut(tiles: np.ndarray, sizes: Sequence[int], groups: int) -> list[np.ndarray]:
    """Cut tiles, in this order, into groups of about equal numbers of patches.

    A group begins with the tile in which its share of all patches begins. So it exceeds that share
    by less than a tile, and none of the groups of `group_count` is empty.

    Args:
        tiles: ids, ``(tiles,)``, and ``sizes``, the patches of each.

    Returns:
        For each group the ids, rising.
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    number = (ends - sizes) * groups // ends[-1]
    return [np.sort(group) for group in np.split(tiles, np.searchsorted(number, range(1, groups)))]


def fewest_patches(sizes: Sequence[int], groups: int) -> int:
    """Count the patches that every group of `cut` has at least, whatever the order of the tiles."""
    ordered = sorted(sizes)
    tiles = sum(sizes) // groups // ordered[-1]
    return sum(ordered[: max(1, tiles)])


def follow(
    counts: csr_array, sizes: Sequence[int], groups: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """Cut tiles into groups of neighbours, so that batches hold most edges of their patches.

    A group begins with a random tile. It then takes, one by one, the tile with the most edges to
    those it holds (the first of equals), or a random one where no edge leads on.

    Args:
        counts: ``(tiles, tiles)``, edges between the patches of two tiles.
        sizes: patches of each tile.
        groups: from `group_count`; they are filled as in `cut`.

    Returns:
        For each group the positions of its tiles, int64, rising.
    """
    waiting = iter(generator.permutation(len(sizes)).tolist())
    free, joined = np.ones(len(sizes), bool), np.zeros(len(sizes))
    found: list[list[int]] = [[] for _ in range(groups)]
    near, begun, total = np.zeros(0, np.int64), 0, sum(sizes)
    while begun < total:
        group = found[begun * groups // total]
        if not group:
            joined[near], near = 0, near[:0]
        near = near[free[near]]
        if len(near):
            best = int(near[joined[near].argmax()])
        else:
            best = next(tile for tile in waiting if free[tile])
        free[best] = False
        group.append(best)
        begun += sizes[best]
        row = slice(counts.indptr[best], counts.indptr[best + 1])
        joined[counts.indices[row]] += counts.data[row]
        near = np.union1d(near, counts.indices[row])
    return [np.sort(np.array(group, np.int64)) for group in found]


def strongest(counts: csr_array, most: int) -> csr_array:
    """Keep the ``most`` greatest entries of each row ``(n, m)``, the first of equals."""
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    order = np.lexsort((counts.indices, -counts.data, rows))
    rank = np.arange(len(order)) - counts.indptr[rows]
    kept = np.sort(order[rank < most])
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows[kept], minlength=counts.shape[0]))])
    return csr_array((counts.data[kept], counts.indices[kept], indptr), shape=counts.shape)


def share_inside(
    counts: csr_array, totals: np.ndarray, rounds: Sequence[Sequence[np.ndarray]]
) -> float:
    """Average over groups the share of their patches' edges that stay inside.

    Args:
        counts: as in `follow`; without the rarest, the share comes out a little too low.
        totals: ``(tiles,)``, all edges of each tile's patches.
        rounds: groups of positions of tiles.
    """
    shares = []
    for group in (group for groups in rounds for group in groups):
        rows = counts[group]
        inside = np.isin(rows.indices, group)
        shares.append(rows.data[inside].sum() / max(totals[group].sum(), 1))
    return float(np.mean(shares))


class Numbering(NamedTuple):
    """The numbers of the patches of a split, tile after tile, and their blocks.

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
        """Number tiles in this order, of ascending images; a block has ``limit`` patches."""
        ends = np.cumsum(sizes)
        firsts = ends - sizes
        _, blocks = np.unique(firsts // limit, return_inverse=True)
        starts = firsts[np.searchsorted(blocks, np.arange(blocks[-1] + 1))]
        _, owner = np.unique(images, return_inverse=True)
        return cls(tiles, np.asarray(sizes), firsts, blocks, owner, np.append(starts, ends[-1]))

    def tile_of(self, patches: np.ndarray) -> np.ndarray:
        """Find the position of the tile of each patch, given by its number."""
        return np.searchsorted(self.firsts, patches, side="right") - 1

    def by_tile(self, patches: np.ndarray) -> list[np.ndarray]:
        """Turn ascending numbers of patches into rows of each tile."""
        of_tiles = np.split(patches, np.searchsorted(patches, self.firsts[1:]))
        return [numbers - first for numbers, first in zip(of_tiles, self.firsts, strict=True)]

    def image_of(self, patches: np.ndarray) -> np.ndarray:
        """Give the range of numbers of the image of each patch, from and to: ``(n, 2)``."""
        image = self.owner[self.tile_of(patches)]
        first, last = (np.searchsorted(self.owner, image, side=side) for side in ("left", "right"))
        return np.stack([self.firsts[first], self.firsts[last - 1] + self.sizes[last - 1]], axis=1)


class GroupPlan(NamedTuple):
    """The cut of training tiles into rounds of groups, or into batches.

    Attributes:
        views: ids of the tiles of each view, rising; a round takes one view, in turn.
        sizes: of each view the patches of its tiles.
        groups: of a round.
        rounds: to store.
    """

    views: list[np.ndarray]
    sizes: list[list[int]]
    groups: int
    rounds: int

    def round_views(self) -> list[int]:
        """Give the view that each round takes."""
        return [number % len(self.views) for number in range(self.rounds)]

    def fewest(self) -> int:
        """Count the patches that every group has at least."""
        return min(fewest_patches(sizes, self.groups) for sizes in self.sizes)

    def patches(self) -> int:
        """Count the patches of all views."""
        return sum(map(sum, self.sizes))


def random_groups(plan: GroupPlan, seed: int) -> list[list[np.ndarray]]:
    """Draw the tiles, by id, of the groups of every round."""
    generator, rounds = np.random.default_rng(seed), []
    for view in plan.round_views():
        order = generator.permutation(len(plan.views[view]))
        sizes = [plan.sizes[view][place] for place in order]
        rounds.append(cut(plan.views[view][order], sizes, plan.groups))
    return rounds


def following_groups(
    plan: GroupPlan, numbering: Numbering, counts: csr_array, seed: int
) -> list[list[np.ndarray]]:
    """Cut tiles, by position in the numbering, into groups of every round along counted edges.

    Args:
        counts: as in `follow`, over all tiles of the numbering.
    """
    generator, rounds = np.random.default_rng(seed), []
    for view in plan.round_views():
        places = np.flatnonzero(np.isin(numbering.tiles, plan.views[view]))
        groups = follow(counts[places][:, places], plan.sizes[view], plan.groups, generator)
        rounds.append([places[group] for group in groups])
    return rounds

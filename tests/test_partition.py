from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from pipeline.graph.partition import (
    Numbering,
    cut,
    fewest_patches,
    follow,
    group_count,
    round_count,
)

SIZES = [
    [100] * 17,
    [7] * 16,
    [5, 1, 1, 1, 9, 2, 2, 30, 4, 4, 1],
    np.random.default_rng(1).integers(1, 500, 300).tolist(),
]


def test_every_epoch_has_a_round_up_to_two_and_every_view_has_one() -> None:
    assert [round_count(epochs, 1) for epochs in (1, 2, 3, 40)] == [1, 2, 2, 2]
    assert [round_count(epochs, 4) for epochs in (1, 3, 4, 40)] == [1, 3, 4, 4]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("most", [1, 40, 700, 10_000])
def test_every_tile_is_in_one_group_of_about_as_many_patches(sizes: list[int], most: int) -> None:
    groups, ids = group_count([sizes], most), np.arange(1000, 1000 + len(sizes))
    order = np.random.default_rng(0).permutation(len(sizes))
    found = cut(ids[order], [sizes[i] for i in order], groups)
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), ids)
    assert len(found) == groups and all((np.diff(group) > 0).all() for group in found)
    patches = [sum(sizes[i - 1000] for i in group) for group in found]
    assert min(patches) >= fewest_patches(sizes, groups) > 0
    assert max(patches) < sum(sizes) / groups + max(sizes)
    assert sum(sizes) / groups <= max(most, 2 * max(sizes))


@pytest.mark.parametrize(("tiles", "each"), [(96, 8), (97, 8), (5, 8), (9, 1)])
def test_tiles_of_one_size_make_groups_of_as_many(tiles: int, each: int) -> None:
    sizes = [1200] * tiles
    groups = group_count([sizes], each * 1200)
    assert groups == -(-tiles // each)
    counts = [len(group) for group in cut(np.arange(tiles), sizes, groups)]
    assert max(counts) <= each and max(counts) - min(counts) <= 1
    assert fewest_patches(sizes, groups) == min(counts) * 1200


def test_views_are_cut_into_as_many_groups() -> None:
    views = [[10] * 12, [1] * 11 + [40], [25] * 12]
    assert group_count(views, 60) == 1  # the second has 51 patches, of which 40 in one tile
    assert group_count(views[::2], 60) == 5
    for view in views[::2]:
        assert all(map(len, cut(np.arange(12), view, 5)))


@pytest.mark.parametrize(("sizes", "most"), [([], 4), ([[]], 4), ([[4], []], 4), ([[4]], 0)])
def test_nothing_to_cut_is_an_error(sizes: list[list[int]], most: int) -> None:
    with pytest.raises(ValueError, match=f"groups of {most} patches"):
        group_count(sizes, most)


def test_following_edges_finds_planted_groups_of_uneven_tiles() -> None:
    """Clusters of tiles of as many patches, joined among each other far more than outside."""
    generator = np.random.default_rng(0)
    clusters = [[8], [4, 4], [2, 2, 4], [1] * 8, [5, 3]]
    owner = np.repeat(np.arange(5), [len(part) for part in clusters])
    sizes = np.concatenate(clusters)
    order = generator.permutation(len(owner))
    owner, sizes = owner[order], sizes[order]
    counts = np.where(owner[:, None] == owner, 100, 1) + np.diag(np.full(len(owner), 50))
    groups = follow(csr_array(counts), sizes.tolist(), 5, np.random.default_rng(1))
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(owner)))
    assert all(len(set(owner[group])) == 1 for group in groups)


def test_following_goes_on_where_no_edge_leads() -> None:
    groups = follow(csr_array((6, 6), dtype=np.int64), [3] * 6, 3, np.random.default_rng(0))
    assert [len(group) for group in groups] == [2, 2, 2]
    assert sorted(np.concatenate(groups).tolist()) == list(range(6))


@pytest.mark.parametrize("sizes", SIZES)
def test_numbers_by_tile_name_the_same_rows(sizes: list[int]) -> None:
    generator, ids = np.random.default_rng(3), np.arange(len(sizes))
    numbering = Numbering.of(ids, sizes, ids, 50)
    tokens = [generator.standard_normal((size, 2)) for size in sizes]
    patches = np.sort(generator.choice(sum(sizes), sum(sizes) // 3, replace=False))
    found = [rows[wanted] for rows, wanted in zip(tokens, numbering.by_tile(patches), strict=True)]
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(tokens)[patches])

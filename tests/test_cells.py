"""The search over a whole data set: cells against brute force, and the stage's graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from cache.features import Features
from cache.graphs import Graphs
from pipeline import cells
from pipeline.cells import RunningTop, coarse_centres, probes_for, recall_of, search_cells
from pipeline.graph import feature_graph, half_edges, restrict, sum_edges
from pipeline.knn import nearest, recall, top
from pipeline.partition import follow, partition, share_inside, strongest
from stages import graph as stage
from stages.train import with_context
from tests.conftest import Project, tree_bytes


def clustered(seed: int, n: int, c: int = 16) -> np.ndarray:
    """Unit rows around 12 centres."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(12, c))
    rows = centres[generator.integers(12, size=n)] + 0.4 * generator.normal(size=(n, c))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def kept_by_cell(rows: np.ndarray, count: int):
    """Centres, and how to read a cell, as the stage keeps them on disk."""
    centres = coarse_centres(rows, count, seed=0)
    cell = top(rows, centres, 1)[0][:, 0]
    return centres, cell, lambda number: (np.flatnonzero(cell == number), rows[cell == number])


@pytest.mark.parametrize("listed", [True, False])
def test_all_cells_give_the_exact_neighbours(listed: bool) -> None:
    rows = clustered(0, 600)
    centres, _, read = kept_by_cell(rows, 9)
    own = np.arange(600)
    probed = top(rows, centres, 9)[0] if listed else None
    found, cosines = search_cells(rows, own, probed, 9, read, 20)
    expected, products = nearest(rows, 20)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(cosines, products, atol=1e-6)


def test_the_recall_foretold_from_a_sample_is_the_recall_found() -> None:
    rows = clustered(1, 2000)
    centres, cell, read = kept_by_cell(rows, 40)
    exact, _ = nearest(rows, 10)
    ranked = np.argsort(-(rows @ centres.T), axis=1, kind="stable")
    probes = probes_for(cell[exact], ranked, 0.9)
    assert 1 < probes < 40
    assert (
        recall_of(cell[exact], ranked, probes - 1) < 0.9 <= recall_of(cell[exact], ranked, probes)
    )
    found, _ = search_cells(rows, np.arange(2000), ranked[:, :probes], 40, read, 10)
    assert recall(found, exact) == pytest.approx(recall_of(cell[exact], ranked, probes), abs=2e-3)


def test_too_few_candidates_are_marked_and_leave_no_edge() -> None:
    best = RunningTop(clustered(2, 3), np.arange(3), 4)
    best.add(np.arange(3), clustered(2, 3))
    found, cosines = best.result()
    assert (found[:, 2:] == -1).all() and (found[:, :2] >= 0).all()
    rows, columns, _ = half_edges(found, np.abs(cosines), 0)
    assert rows.min() >= 0 and columns.min() >= 0


def test_edges_listed_by_blocks_add_up_to_the_feature_graph() -> None:
    found, cosines = nearest(clustered(3, 90), 7)
    parts = [half_edges(found[a : a + 30], cosines[a : a + 30], a) for a in (0, 30, 60)]
    joined = sum_edges(*map(np.concatenate, zip(*parts, strict=True)), (90, 90))
    np.testing.assert_allclose(joined.toarray(), feature_graph(found, cosines).toarray(), atol=1e-7)
    assert joined.has_canonical_format


def test_restrict_is_indexing() -> None:
    whole = feature_graph(*nearest(clustered(4, 80), 9))
    runs = [(50, 10), (5, 20), (70, 10)]  # in any order, with gaps
    picked = np.concatenate([np.arange(a, a + n) for a, n in runs])
    rows = whole[picked]
    found = restrict(rows.indptr, rows.indices, rows.data, runs)
    np.testing.assert_array_equal(found.toarray(), whole.toarray()[np.ix_(picked, picked)])


def test_groups_follow_the_edges() -> None:
    # Four cliques of three images, their members far apart in the order; weak edges between all.
    clique = np.arange(12) % 4
    counts = csr_array(np.where(clique[:, None] == clique, 100, 1))
    for groups in follow(counts, 3, 2, np.random.default_rng(0)):
        assert sorted(image for group in groups for image in group) == list(range(12))
        assert all(len(set(clique[group])) == 1 for group in groups)
    totals = counts.sum(axis=1)
    follows = share_inside(counts, totals, follow(counts, 3, 2, np.random.default_rng(0)))
    assert follows == pytest.approx(300 / 309)
    drawn = partition(range(12), 3, 2, np.random.default_rng(0))
    assert share_inside(counts, totals, drawn) < 0.7
    assert all(set(clique[row.indices]) == {c} for c, row in enumerate(strongest(counts, 3)[:4]))


def test_the_strongest_are_the_greatest_of_each_row() -> None:
    generator = np.random.default_rng(0)
    dense = generator.permutation(60).reshape(5, 12) * (generator.random((5, 12)) < 0.6)
    kept = strongest(csr_array(dense), 4).toarray()
    for row, expected in zip(kept, dense, strict=True):
        greatest = np.sort(expected)[-4:]
        assert sorted(row[row > 0]) == sorted(greatest[greatest > 0])


def test_groups_without_edges_still_hold_every_image() -> None:
    (groups,) = follow(csr_array((7, 7)), 3, 1, np.random.default_rng(0))
    assert sorted(np.concatenate(groups)) == list(range(7))
    assert sorted(map(len, groups)) == [2, 2, 3]


@pytest.fixture
def whole(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose graph is over all patches, in blocks of two tiles."""
    monkeypatch.setattr(stage, "BLOCK_PATCHES", 96)
    stage._plan.cache_clear()
    project.set("graph.scope", "dataset")
    project.set("graph.level", "last")
    project.set("graph.k", 5)
    project.ok("prepare", "extract")
    return project


def exact_graph(features: Features, k: int, level: str = "last") -> np.ndarray:
    """The graph over all patches of the split by brute force, dense."""
    rows = features.batch([level], features.tiles_of("train")).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return feature_graph(*nearest(rows, k)).toarray()


def dense(graphs: Graphs, features: Features) -> tuple[np.ndarray, np.ndarray]:
    """The stored graph as the groups of one round hold it, and which pairs they see."""
    tiles = features.tiles_of("train")
    size = features.size(tiles[0])  # of every tile
    matrix = np.zeros((len(tiles) * size,) * 2)
    seen = np.zeros_like(matrix, bool)
    for number in range(graphs.manifest["groups"]):
        found = graphs.group(0, number)
        runs = [(int(first), size) for first in found.firsts]
        picked = np.concatenate([np.arange(a, a + n) for a, n in runs])
        matrix[np.ix_(picked, picked)] = restrict(*found.edges, runs).toarray()
        seen[np.ix_(picked, picked)] = True
    return matrix, seen


@pytest.mark.parametrize(
    ("exact_rows", "level"),
    [(50_000, "last"), (10, "last"), (10, "context")],
    ids=["one cell", "cells", "context"],
)
def test_the_stage_makes_the_graph_of_all_patches(
    whole: Project, exact_rows: int, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "EXACT_ROWS", exact_rows)
    monkeypatch.setattr(cells, "CELL_ROWS", 30)
    whole.set("graph.recall", 1.0)
    whole.set("graph.group_images", 6)  # one group: every edge is seen
    whole.set("graph.level", level)
    whole.ok("graph")
    with Graphs("data/graph.h5") as graphs:
        features = with_context(Features.open("data/features.zarr"), graphs)
        expected = exact_graph(features, 5, level)
        assert graphs.manifest["edges_seen"] == 1
        assert graphs.manifest["cells"] == (1 if exact_rows > 10 else len(expected) // 30)
        found, _ = dense(graphs, features)
    # Candidates are kept as float16: where two neighbours are as near as that, either may be taken.
    assert (np.abs(found - expected) > 2e-3).mean() < 1e-3
    np.testing.assert_array_equal(found, found.T)


def test_groups_see_their_part_of_the_graph_and_training_runs(whole: Project) -> None:
    result = whole.run("graph")
    assert result.exit_code == 0 and "a batch sees" in result.output, result.output
    features = Features.open("data/features.zarr")
    with Graphs("data/graph.h5") as graphs:
        assert graphs.manifest["groups"] == 2
        assert 0 < graphs.manifest["edges_seen"] < 1
        _, seen = dense(graphs, features)
        edges = exact_graph(features, 5) > 0
        # Every image has as many patches; a group's share is weighted by its edges.
        assert abs((edges & seen).sum() / edges.sum() - graphs.manifest["edges_seen"]) < 0.05
    whole.ok("train", "segment", "eval")


def test_an_approximate_search_prints_its_recall(
    whole: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "EXACT_ROWS", 10)
    monkeypatch.setattr(cells, "CELL_ROWS", 15)
    whole.set("graph.recall", 0.5)
    whole.set("graph.group_images", 6)
    result = whole.run("graph")
    assert "recall 0." in result.output, result.output
    with Graphs("data/graph.h5") as graphs:
        assert graphs.manifest["probes"] < graphs.manifest["cells"]
        foretold = graphs.manifest["found_recall"]
        found, _ = dense(graphs, Features.open("data/features.zarr"))
    expected = exact_graph(Features.open("data/features.zarr"), 5) > 0
    assert foretold >= 0.5
    # An edge is there if either end finds the other: more than the share of neighbours found.
    assert foretold - 0.05 < (expected & (found > 0)).sum() / expected.sum() < 1


def test_blocks_that_were_finished_are_not_searched_again(
    whole: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole.ok("graph")
    expected = tree_bytes(Path("data/graph.h5"))
    Path("data/graph.h5").unlink()
    searched = []

    def stop(job, name, block) -> None:
        searched.append(block)
        if block == 1:
            raise OSError("stopped")
        fill_found(job, name, block)

    fill_found = stage.fill_found
    monkeypatch.setattr(stage, "fill_found", stop)
    whole.fails("graph", "stopped")
    monkeypatch.setattr(stage, "fill_found", fill_found)
    result = whole.run("graph")
    assert "resumed" in result.output and searched == [0, 1]
    assert tree_bytes(Path("data/graph.h5")) == expected


@pytest.mark.parametrize("limit", [20, 96], ids=["tiles larger than a block", "two tiles a block"])
def test_windows_of_one_image_may_lie_in_different_blocks(
    whole: Project, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "BLOCK_PATCHES", limit)
    whole.set("extract.window", 64)
    whole.set("extract.stride", 48)
    whole.set("graph.group_images", 6)
    whole.ok("extract", "graph")
    features = Features.open("data/features.zarr")
    with Graphs("data/graph.h5") as graphs:
        tiles = graphs.group(0, 0).tiles
        assert sorted(tiles) == sorted(features.tiles_of("train"))
        found, _ = dense(graphs, features)
        assert graphs.manifest["edges_seen"] == 1
    assert (np.abs(found - exact_graph(features, 5)) > 2e-3).mean() < 1e-3


def test_a_fraction_of_all_patches_is_refused(whole: Project) -> None:
    whole.set("graph.k", 0.01)
    whole.fails("graph", "graph", "must be a count")

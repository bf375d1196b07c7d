"""The opponents and the reference: K-means on joined levels, spectral clustering, true spectra."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from scipy.linalg import block_diag
from scipy.sparse import csr_array

from bench import angles, kmeans, ncut, spectral
from bench import heads as bench_heads
from bench.scoring import balanced
from cache import heads
from cache.features import Features
from cache.graphs import Graphs
from cache.store.artefact import read_json, write_json
from pipeline.features.whitening import unit_rows
from pipeline.graph.kernel import block_diagonal, kernel
from tests.conftest import Project, tables


def around_axes(each: int, channels: int, axes: int) -> np.ndarray:
    """Unit rows near so many axes, one after the other: float32 ``(axes * each, channels)``."""
    rng = np.random.default_rng(5)
    rows = np.repeat(np.eye(channels)[:axes], each, axis=0)
    return unit_rows((rows + rng.normal(scale=0.1, size=rows.shape)).astype(np.float32))


def test_levels_are_joined_with_equal_weight() -> None:
    rng = np.random.default_rng(0)
    small, large = rng.normal(size=(20, 3)), 100 * rng.normal(size=(20, 5))
    tokens = np.hstack([small, large]).astype(np.float16)
    found = balanced(tokens, [3, 5])
    assert found.dtype == np.float32
    for level, rows in ((found[:, :3], small), (found[:, 3:], large)):
        np.testing.assert_allclose(np.linalg.norm(level, axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose((unit_rows(rows) * level).sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(balanced(tokens, [8]), tokens)


def test_kmeans_takes_every_choice_of_the_sweep(project: Project) -> None:
    project.ok("prepare", "extract")
    joined = ["--level", "first,last", "--clusters", "6", "--seeds", "1"]
    scores = []
    for extra in ([], ["--no-spherical"], ["--whiten", "4"], ["--whiten", "4", "--power", "0.25"]):
        (found,) = tables(kmeans.main, *joined, *extra)
        assert found["level"] == "first,last"
        assert found["spherical"] is ("--no-spherical" not in extra)
        scores.append(found["majority_iou"][0][0])
    assert all(0 < score <= 100 for score in scores)
    assert len(set(scores)) == 4  # each choice is heard


def test_kmeans_on_context_is_that_of_training(project: Project) -> None:
    project.set("kmeans.level", "context")
    asked = ["--level", "context", "--clusters", "6", "--seeds", "1"]
    project.ok("prepare", "extract")
    result = CliRunner().invoke(kmeans.main, asked)
    assert result.exit_code == 1 and "context" in str(result.exception)  # no graph, no context
    project.ok("graph", "train")
    (found,) = tables(kmeans.main, *asked)
    (trained,) = tables(bench_heads.main, "data/head", "--predictor", "kmeans")
    for matching in ("majority_iou", "hungarian"):
        assert found[matching][0] == pytest.approx(trained[matching])


def test_the_spectrum_is_that_of_the_random_walk() -> None:
    rows, k = around_axes(20, 12, 4), 15
    found = spectral.spectrum(rows, k, 6, seed=0)
    # The graph by brute force: k best cosines of other rows, made symmetric.
    cosines = rows.astype(np.float64) @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    best = cosines >= np.sort(cosines, axis=1)[:, -k][:, None]
    directed = np.where(best, np.maximum(cosines, 0), 0)
    graph = (directed + directed.T) / 2
    walk = graph / graph.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(walk @ found.functions, found.functions * found.values, atol=1e-4)
    expected = np.sort(np.linalg.eigvals(walk).real)[::-1][:6]
    np.testing.assert_allclose(found.values, expected, atol=1e-4)


def test_eigenfunctions_reach_other_rows_by_weighted_means() -> None:
    rows = around_axes(20, 12, 4)
    queries, k = around_axes(23, 12, 4)[::3], 5
    found = spectral.spectrum(rows, 15, 4, seed=0)
    expected = []
    for query in queries:
        cosines = rows @ query
        near = np.argsort(-cosines)[:k]
        weights = np.maximum(cosines[near], 0)
        expected.append(weights @ found.functions[near] / weights.sum() / found.values)
    np.testing.assert_allclose(spectral.extend(found, queries, k), expected, atol=1e-5)
    opposite = spectral.extend(found, -rows.sum(axis=0, keepdims=True) / 100, k)
    np.testing.assert_array_equal(opposite, 0)  # no neighbour with a cosine above 0


def test_spectral_clustering_scores_every_k_of_the_same_eigenvectors(project: Project) -> None:
    project.ok("prepare", "extract")
    small = ["--patches", "100", "--k", "8", "--seeds", "2", "--level", "first,last"]
    several = tables(spectral.main, *small, "--clusters", "5,3", "--vectors", "5", "--whiten", "6")
    alone = tables(spectral.main, *small, "--clusters", "3", "--vectors", "5", "--whiten", "6")
    assert [found["clusters"] for found in several] == [5, 3]
    for matching in ("majority_iou", "hungarian"):
        assert len(several[0][matching]) == 2
        assert several[1][matching] == alone[0][matching]


def test_leading_eigenvectors_agree_with_a_dense_solver() -> None:
    rng = np.random.default_rng(1)
    dense = rng.normal(size=(40, 40))
    dense = dense + dense.T
    values, vectors = angles.leading(csr_array(dense), 7)
    expected, all_vectors = np.linalg.eigh(dense)
    np.testing.assert_allclose(values, expected[::-1][:7])
    np.testing.assert_allclose(
        np.abs(all_vectors[:, ::-1][:, :7].T @ vectors), np.eye(7), atol=1e-9
    )


def test_assignments_to_the_parts_of_a_graph_span_its_leading_eigenvectors() -> None:
    parts = [np.ones((n, n)) / n for n in (4, 6, 10)]
    kappa = csr_array(block_diag(*parts))
    vectors = angles.leading(kappa, 3)[1]
    assigned = np.repeat(np.eye(3), (4, 6, 10), axis=0)
    row = angles.compare(np.hstack([assigned, assigned[:, :1]]), kappa, vectors)
    assert row["dimension"] == 3  # a column twice adds none
    assert row["share"] == pytest.approx(1) and row["trace"] == pytest.approx(3)
    two = angles.compare(assigned[:, :2] + assigned[:, 2:], kappa, vectors)
    assert two["dimension"] == 2 and two["share"] == pytest.approx(2 / 3)


def test_a_random_subspace_captures_its_share_of_the_dimensions() -> None:
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.normal(size=(1000, 20)))[0]
    row = angles.compare(rng.normal(size=(1000, 50)), csr_array((1000, 1000)), vectors)
    assert row["share"] == pytest.approx(50 / 1000, rel=0.2)
    cosines = list(row["cosines: first / middle / last"])
    assert len(cosines) == 20 and cosines == sorted(cosines, reverse=True)


def test_the_angles_of_a_trained_head_agree_with_projections(project: Project) -> None:
    project.ok("prepare", "extract", "context", "graph", "train")
    (table,) = tables(angles.main)
    assert table["trained on this graph"] is True and table["eigenvectors"] == 6
    rows = {row["span"]: row for row in table["rows"]}
    # The same figures from the definition: dense eigenvectors, projections by least squares.
    features = Features.open("data/features.zarr")
    with Graphs("data/graph.h5") as graphs:
        group = graphs.group(0, 0)
        n = len(group.edges.indptr) - 1
        csr = (group.edges.weights, group.edges.columns, group.edges.indptr)
        pixels = block_diagonal([graphs.pixel_graph(int(tile)) for tile in group.tiles])
    kappa = kernel(csr_array(csr, shape=(n, n)), pixels, project.tree["graph"]["alpha"])
    values, vectors = np.linalg.eigh(kappa.toarray().astype(np.float64))
    assert table["greatest trace"] == pytest.approx(values[-6:].sum(), rel=1e-5)
    centres = heads.load_head("data/head")[1]["kmeans"]["centroids"]
    tokens = unit_rows(features.batch(["last"], group.tiles).astype(np.float32))
    assigned = np.eye(6)[(tokens @ centres.T).argmax(axis=1)]
    fitted = assigned @ np.linalg.lstsq(assigned, vectors[:, -6:])[0]
    expected = np.square(fitted).sum() / 6
    assert rows["K-means, argmax"]["share"] == pytest.approx(expected, rel=1e-5)
    for row in rows.values():
        assert 0 < row["share"] <= 1 and row["dimension"] <= 6
        assert row["trace"] <= table["greatest trace"] + 1e-6  # Ky Fan
    assert rows["random"]["dimension"] == 6


def test_a_head_of_another_cache_is_refused(project: Project) -> None:
    project.ok("prepare", "extract", "context", "graph", "train")
    manifest = Path("data/head/manifest.json")
    write_json(manifest, {**read_json(manifest, ""), "features": "other"})
    result = CliRunner().invoke(angles.main)
    assert result.exit_code == 1 and "trained on another feature cache" in result.output


def test_ncut_finds_separated_groups() -> None:
    pytest.importorskip("ncut_pytorch", reason="needs the extra ncut")
    rows = around_axes(60, 12, 4)
    own, embed = ncut.embedding(rows, 4, None, seed=0, device="cpu")
    assert own.shape == (240, 4)
    again = ncut.embedding(rows, 4, None, seed=0, device="cpu")[1]
    np.testing.assert_array_equal(embed(rows[:50]), again(rows[:50]))
    same = np.kron(np.eye(4), np.ones((60, 60))) > 0
    for found in (own, embed(unit_rows(rows + np.float32(0.01)))):
        cosines = unit_rows(found) @ unit_rows(found).T
        assert cosines[same].min() > cosines[~same].max()


def test_ncut_scores_the_evaluation_split(project: Project) -> None:
    pytest.importorskip("ncut_pytorch", reason="needs the extra ncut")
    project.ok("prepare", "extract")
    (found,) = tables(ncut.main, "--patches", "200", "--clusters", "4", "--seeds", "1")
    assert found["method"] == "ncut" and 0 < found["majority_iou"][0][0] <= 100


def test_ncut_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ncut_pytorch", None)
    with pytest.raises(click.ClickException, match=r"needs the package ncut-pytorch.*\[ncut\]"):
        ncut.embedding(around_axes(4, 6, 2), 2, None, seed=0, device="cpu")


@pytest.mark.parametrize("predictor", ["ours", "ours_kmeans", "kmeans"])
def test_trained_heads_score_as_the_stages_say(project: Project, predictor: str) -> None:
    project.ok("prepare", "extract", "context", "graph", "train", "segment", "eval")
    (found,) = tables(bench_heads.main, "data/head", "--predictor", predictor)
    metrics = json.loads(Path("results/metrics.json").read_text())[predictor]
    for matching in ("majority_iou", "hungarian"):
        oracle = metrics[matching]["oracle"]
        assert found[matching] == pytest.approx([oracle["miou"], oracle["accuracy"]])

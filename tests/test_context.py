"""The level context: its numerics against plain loops, and its way from graph to prediction."""

from __future__ import annotations

import json
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache import heads
from cache.features import Features
from cache.graphs import Graphs
from pipeline.features import context
from pipeline.features.context import Context, apply, average, fit
from pipeline.features.whitening import unit_rows
from pipeline.maps.predictors import Inputs
from stages import graph as graph_stage
from stages.train import with_context
from tests.conftest import Project, tree_bytes

C = 8


def tokens(n: int, seed: int = 0) -> np.ndarray:
    """Tokens of correlated channels, of other lengths than 1 and away from 0."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n, C)) @ np.random.default_rng(9).normal(size=(C, C))
    return (3 * mixed + 2).astype(np.float32)


def fitted(**changes: Any) -> Context:
    """A context of two levels."""
    settings = {"components": 4, "weights": [1.0, 0.5], "temperature": 0.2, "reach": 2.0, **changes}
    return fit([tokens(500), tokens(500, 1)], **settings)


def plain_average(
    rows: np.ndarray, grid_h: int, grid_w: int, temperature: float, reach: float
) -> np.ndarray:
    averaged = np.zeros(rows.shape)
    for u in range(grid_h * grid_w):
        total = 0.0
        for v in range(grid_h * grid_w):
            cosine = float(rows[u].astype(np.float64) @ rows[v])
            apart = (u // grid_w - v // grid_w) ** 2 + (u % grid_w - v % grid_w) ** 2
            weight = exp(cosine / temperature - apart / (2 * reach**2))
            averaged[u] += weight * rows[v]
            total += weight
        averaged[u] /= total
    return averaged


@pytest.mark.parametrize(("temperature", "reach"), [(0.2, 2.0), (1.0, 0.7), (0.05, 10.0)])
def test_the_average_is_the_double_loop(temperature: float, reach: float) -> None:
    rows = unit_rows(tokens(12))
    found = average(rows, 3, 4, temperature, reach)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plain_average(rows, 3, 4, temperature, reach), atol=1e-5)
    assert np.abs(found - average(rows, 4, 3, temperature, reach)).max() > 1e-4


def test_the_limits_of_the_average() -> None:
    rows = unit_rows(tokens(20))
    # Only itself is near, or like itself.
    np.testing.assert_allclose(average(rows, 4, 5, 1.0, 0.1), rows, atol=1e-5)
    np.testing.assert_allclose(average(rows, 4, 5, 1e-3, 1e3), rows, atol=1e-5)
    # Neither place nor likeness counts: weights are equal, and sum to one.
    everything = np.broadcast_to(rows.mean(axis=0), rows.shape)
    np.testing.assert_allclose(average(rows, 4, 5, 1e4, 1e4), everything, atol=1e-3)
    constant = np.repeat(rows[:1], 20, axis=0)
    np.testing.assert_allclose(average(constant, 4, 5, 0.2, 2.0), constant, atol=1e-6)


@pytest.mark.parametrize("queries", [1, 7, 20, 1000])
def test_how_many_patches_look_around_at_a_time_changes_nothing(
    queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = unit_rows(tokens(20))
    monkeypatch.setattr(context, "QUERIES", queries)
    np.testing.assert_allclose(
        average(rows, 4, 5, 0.2, 2.0), plain_average(rows, 4, 5, 0.2, 2.0), atol=1e-5
    )


def test_fitting_whitens_the_unit_rows_of_each_level() -> None:
    points = [tokens(500), tokens(500, 1)]
    found = fitted(components=C)
    for level, mean, projection in zip(points, found.means, found.projections, strict=True):
        white = (unit_rows(level) - mean) @ projection
        np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(C), atol=1e-3)
        np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-4)
    few = fitted(components=3)  # the first, which have the greatest variances
    assert few.channels == 6
    np.testing.assert_allclose(few.projections, found.projections[:, :, :3], rtol=1e-5)


def test_there_are_no_more_components_than_channels() -> None:
    found = fitted(components=100)
    assert found.channels == 2 * C
    assert found.projections.shape == (2, C, C)
    assert apply(found, [tokens(6), tokens(6, 1)], 2, 3).shape == (6, 2 * C)


def test_applying_is_its_description() -> None:
    found = fitted()
    levels = [tokens(12, 2).astype(np.float16), tokens(12, 3).astype(np.float16)]
    joined = []
    for level, mean, projection, weight in zip(levels, *found[:3], strict=True):
        unit = level / np.linalg.norm(level.astype(np.float64), axis=1, keepdims=True)
        white = (unit - mean) @ projection
        joined.append(weight * white / np.linalg.norm(white, axis=1, keepdims=True))
    rows = np.concatenate(joined, axis=1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    expected = plain_average(rows, 3, 4, 0.2, 2.0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    result = apply(found, levels, 3, 4)
    assert result.dtype == np.float16
    np.testing.assert_allclose(result, expected, atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(result.astype(float), axis=1), 1, atol=2e-3)


def test_levels_have_their_weights() -> None:
    for weights in ([1.0, 0.5], [0.1, 1.0]):
        alone = fitted(weights=weights, reach=0.1)  # every patch for itself
        found = apply(alone, [tokens(6), tokens(6, 1)], 2, 3).astype(float)
        first, second = np.linalg.norm(found[:, :4], axis=1), np.linalg.norm(found[:, 4:], axis=1)
        np.testing.assert_allclose(first / second, weights[0] / weights[1], rtol=1e-2)


def test_a_constant_tile_stays_constant() -> None:
    levels = [np.repeat(tokens(1, seed), 20, axis=0) for seed in (2, 3)]
    found = apply(fitted(), levels, 4, 5)
    single = apply(fitted(), [level[:1] for level in levels], 1, 1)
    np.testing.assert_allclose(found, np.repeat(single, 20, axis=0), atol=1e-3)


def test_tokens_that_do_not_fit_are_refused() -> None:
    found = fitted()
    level = tokens(6)
    for levels, grid in (
        ([level], (2, 3)),
        ([level] * 3, (2, 3)),
        ([level, level[:, 1:]], (2, 3)),
        ([level, level], (2, 4)),
    ):
        with pytest.raises(ValueError, match=r"fitted to 2 levels of 8 channels .* found tokens"):
            apply(found, levels, *grid)
    for value in (np.nan, np.inf):
        spoilt = tokens(500)
        spoilt[7, 3] = value
        with pytest.raises(ValueError, match="needs finite tokens, found NaN or infinity: delete"):
            fit([tokens(500), spoilt], 4, [1.0, 1.0], 0.2, 2.0)


def test_what_must_be_stored_for_the_predictors() -> None:
    around: list[int | str] = ["late", "last"]
    assert Inputs(["context", 2], "last", fitted(), around).stored == {2, "late", "last"}
    assert Inputs(["first"], "context", fitted(), around).stored == {"first", "late", "last"}
    assert Inputs(["first", 2], "keys", fitted(), around).stored == {"first", 2, "keys"}


def test_graph_and_head_keep_one_context(project: Project) -> None:
    project.ok("prepare", "extract", "graph", "train")
    features = Features.open("data/features.zarr")
    levels = features.manifest["levels"]
    assert levels["late"] == levels["3"] == "block_03" != levels["last"]
    with Graphs("data/graph.h5") as graphs:
        stored = graphs.context()
        chosen = json.loads(json.dumps(project.tree["context"]))
        assert graphs.manifest["context"] == chosen
        wider = with_context(features, graphs)
    found = Context(**stored)
    assert found.weights.tolist() == [1.0, 0.5] and found.channels == wider.channels("context")
    assert (found.temperature, found.reach) == (chosen["temperature"], chosen["reach"])
    assert found.means.shape == (2, 64) and found.projections.shape == (2, 64, 16)
    _, fitted_beside, manifest = heads.load_head("data/head")
    assert manifest["context"] == chosen
    assert fitted_beside["context"].keys() == stored.keys()
    for field, value in stored.items():
        np.testing.assert_array_equal(fitted_beside["context"][field], value)
    tile = features.tiles[4]
    expected = apply(
        found,
        [features.tokens("late", 4), features.tokens("last", 4)],
        int(tile["grid_h"]),
        int(tile["grid_w"]),
    )
    np.testing.assert_array_equal(wider.tokens("context", 4), expected)


def test_other_choices_make_another_graph(project: Project) -> None:
    project.ok("prepare", "extract")
    prints = []
    changes = (
        ("graph.level", "last"),
        ("context.temperature", 0.4),
        ("context.reach", 3.0),
        ("context.levels", ["first", "last"]),
        ("context.weights", [0.5, 1.0]),
        ("context.components", 8),
        ("context.patches", 100),
    )
    for key, value in changes:
        project.set(key, value)
        project.ok("graph")
        with Graphs("data/graph.h5") as graphs:
            prints.append(graphs.manifest["fingerprint"])
    assert len(set(prints)) == len(changes)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "damaged"])
def test_an_interrupted_graph_keeps_what_was_fitted(
    project: Project, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    project.ok("prepare", "extract", "graph")
    expected = tree_bytes(Path("data/graph.h5"))
    Path("data/graph.h5").unlink()

    def stop(*_: object) -> None:
        raise OSError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(graph_stage, "fill_group", stop)
        project.fails("graph", "stopped")
    (part,) = Path("data/.work").glob("graph.h5-*/part-context.h5")
    if not whole:
        part.write_bytes(part.read_bytes()[:-50])
    calls = []
    monkeypatch.setattr(context, "fit", lambda *choices: calls.append(1) or fit(*choices))
    project.ok("graph")
    assert len(calls) == (0 if whole else 1)
    assert tree_bytes(Path("data/graph.h5")) == expected


def test_every_stage_takes_the_context_for_every_predictor(project: Project) -> None:
    project.set("kmeans.level", "context")
    project.set("head.levels", ["context", "first"])
    project.set("train.epochs", 1)
    project.ok("prepare", "extract", "graph", "train", "segment", "eval")
    _, kmeans, manifest = heads.load_head("data/head")
    assert manifest["head"]["channels"] == [32, 64]
    assert kmeans["kmeans"]["centroids"].shape == (6, 32)
    assert json.loads(Path("results/metrics.json").read_text())["kmeans"]["k"] == 6

"""The level context: its numerics against plain loops, and its way from graph to prediction."""

from __future__ import annotations

import shutil
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache import heads
from cache.features import Features, read_fit
from pipeline.features import context
from pipeline.features.context import Context, apply, average, fit
from pipeline.features.whitening import unit_rows
from stages import context as context_stage
from stages import extract as extract_stage
from tests.conftest import Project, metrics_of, tree_bytes

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


def averaged(rows: np.ndarray, *choices: float) -> np.ndarray:
    return average(torch.from_numpy(rows), *choices).numpy()


@pytest.mark.parametrize(("temperature", "reach"), [(0.2, 2.0), (1.0, 0.7), (0.05, 10.0)])
def test_the_average_is_the_double_loop(temperature: float, reach: float) -> None:
    rows = unit_rows(tokens(12))
    found = averaged(rows, 3, 4, temperature, reach)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plain_average(rows, 3, 4, temperature, reach), atol=1e-5)
    assert np.abs(found - averaged(rows, 4, 3, temperature, reach)).max() > 1e-4


def test_the_limits_of_the_average() -> None:
    rows = unit_rows(tokens(20))
    # Only itself is near, or like itself.
    np.testing.assert_allclose(averaged(rows, 4, 5, 1.0, 0.1), rows, atol=1e-5)
    np.testing.assert_allclose(averaged(rows, 4, 5, 1e-3, 1e3), rows, atol=1e-5)
    # Neither place nor likeness counts: weights are equal, and sum to one.
    everything = np.broadcast_to(rows.mean(axis=0), rows.shape)
    np.testing.assert_allclose(averaged(rows, 4, 5, 1e4, 1e4), everything, atol=1e-3)
    constant = np.repeat(rows[:1], 20, axis=0)
    np.testing.assert_allclose(averaged(constant, 4, 5, 0.2, 2.0), constant, atol=1e-6)


@pytest.mark.parametrize("queries", [1, 7, 20, 1000])
def test_how_many_patches_look_around_at_a_time_changes_nothing(
    queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = unit_rows(tokens(20))
    monkeypatch.setattr(context, "QUERIES", queries)
    np.testing.assert_allclose(
        averaged(rows, 4, 5, 0.2, 2.0), plain_average(rows, 4, 5, 0.2, 2.0), atol=1e-5
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


def opened() -> Features:
    return Features.open("data/features.zarr").beside("data/context.zarr")


def test_the_stage_writes_what_the_numerics_give(project: Project) -> None:
    project.made("context")
    both = opened()
    fit = Context(**read_fit("data/context.zarr"))
    assert fit.weights.tolist() == [1.0, 0.5] and fit.channels == both.channels("context") == 32
    choices = project.tree["context"]
    assert (fit.temperature, fit.reach) == (choices["temperature"], choices["reach"])
    assert fit.means.shape == (2, 64) and fit.projections.shape == (2, 64, 16)
    for tile in range(len(both.tiles)):
        grid = int(both.tiles[tile]["grid_h"]), int(both.tiles[tile]["grid_w"])
        levels = [both.tokens("late", tile), both.tokens("last", tile)]
        np.testing.assert_array_equal(both.tokens("context", tile), apply(fit, levels, *grid))


def test_the_whitening_is_fitted_to_the_training_split_alone(project: Project) -> None:
    project.made("context")
    cache, fit = opened(), Context(**read_fit("data/context.zarr"))
    tiles = cache.tiles_of("train")  # fewer patches than the sample: all of them are in it
    points = [cache.batch([level], tiles).astype(np.float32) for level in ("late", "last")]
    expected = context.fit(points, 16, [1.0, 0.5], 0.2, 2.0)
    for field, value in expected._asdict().items():
        np.testing.assert_array_equal(getattr(fit, field), value)


def test_head_and_prediction_keep_the_fit(project: Project) -> None:
    project.made("train")
    _, fitted_beside, manifest = heads.load_head("data/head")
    assert manifest["context"] == ["late", "last"]
    stored = read_fit("data/context.zarr")
    assert fitted_beside["context"].keys() == stored.keys()
    for field, value in stored.items():
        np.testing.assert_array_equal(fitted_beside["context"][field], value)


def test_without_a_level_that_uses_it_there_is_a_manifest_alone(project: Project) -> None:
    project.set("graph.level", "last")
    project.set("head.levels", ["first", "last"])
    project.ok("prepare", "extract", "context")
    written = {path.name for path in Path("data/context.zarr").iterdir()}
    assert written == {"manifest.json", "tiles", "zarr.json"}
    with pytest.raises(ValueError, match=r"holds the levels .* not context"):
        opened().channels("context")
    project.ok("graph", "train", "segment", "eval")
    assert "context" not in heads.load_head("data/head")[1]
    assert project.run("predict", "photos/images/val", "--out", "out").exit_code == 0


def test_other_choices_make_another_level(project: Project) -> None:
    project.made("extract")
    prints = []
    changes = (
        ("seed", 0),
        ("context.temperature", 0.4),
        ("context.reach", 3.0),
        ("context.components", 8),
        ("backbones.tiny.context", {"first": 1.0, "last": 0.5}),
        ("backbones.tiny.context", {"first": 0.5, "last": 1.0}),
    )
    for key, value in changes:
        project.set(key, value)
        project.ok("context")
        prints.append(opened().fingerprint)
    assert len(set(prints)) == len(changes)


def test_a_level_of_another_cache_is_refused(project: Project) -> None:
    project.made("context")
    project.set("extract.train.short_side", 80)
    project.ok("extract")
    project.fails("graph", "data/context.zarr was made from another feature cache", "dvc repro")


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "damaged"])
def test_an_interrupted_stage_goes_on_and_ends_the_same(
    project: Project, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.setattr(extract_stage, "SHARD_PATCHES", 200)
    project.ok("prepare", "extract", "context")
    expected = tree_bytes(Path("data/context.zarr"))
    shutil.rmtree("data/context.zarr")
    fill, calls, fits = context_stage.fill_shard, [], []

    def stop(job: Any, shard: int) -> None:
        calls.append(shard)
        if len(calls) == 2:
            raise OSError("stopped")
        fill(job, shard)

    with monkeypatch.context() as patch:
        patch.setattr(context_stage, "fill_shard", stop)
        project.fails("context", "stopped")
    (part,) = Path("data/.work").glob("context.zarr-*/context.zarr/fit.safetensors")
    if not whole:
        part.write_bytes(part.read_bytes()[:-50])
    with monkeypatch.context() as patch:
        patch.setattr(context, "fit", lambda *choices: fits.append(1) or fit(*choices))
        patch.setattr(context_stage, "fill_shard", lambda job, n: calls.append(n) or fill(job, n))
        project.ok("context")
    assert len(fits) == (0 if whole else 1)
    assert calls.count(calls[0]) == 1  # the first shard was finished
    assert tree_bytes(Path("data/context.zarr")) == expected


def test_damage_is_told(project: Project) -> None:
    project.made("graph")
    path = Path("data/context.zarr/fit.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    project.fails("train", "fit.safetensors is damaged", "dvc repro context")
    shard = Path("data/context.zarr/context/c/0/0")
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    project.fails("graph", "context is damaged at tile 0", "dvc repro context")


def test_every_stage_takes_the_context_for_every_predictor(project: Project) -> None:
    project.set("kmeans.level", "context")
    project.set("head.levels", ["context", "first"])
    project.set("train.epochs", 1)
    project.ok("prepare", "extract", "context", "graph", "train", "segment", "eval")
    _, kmeans, manifest = heads.load_head("data/head")
    assert manifest["head"]["channels"] == [32, 64]
    assert kmeans["kmeans"]["centroids"].shape == (6, 32)
    metrics = metrics_of()
    assert metrics["kmeans"]["k"] == 6

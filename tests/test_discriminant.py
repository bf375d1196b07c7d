"""The metric of coarse clusters, against a dense reference and against what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.features.whitening import unit_rows
from pipeline.head import discriminant, kmeans
from pipeline.head.discriminant import Discriminant
from pipeline.head.head import Head
from pipeline.head.start import LEAST_COARSE, DiscriminantStart, start_at

CHOICES = {"clusters": 6, "runs": 3, "seed": 0, "gpu": False}


def stretched(classes: int = 6, noise: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows of some classes, with far more noise along four directions than along others."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(classes, 16))
    classes_of = np.arange(classes).repeat(200)
    spread = np.full(16, 0.3)
    spread[:4] = noise
    rows = means[classes_of] + spread * rng.normal(size=(len(classes_of), 16))
    return unit_rows(rows.astype(np.float32)), classes_of


def purity(rows: np.ndarray, classes_of: np.ndarray, seed: int) -> float:
    """Share of the points whose cluster of K-means has mostly their class."""
    found = kmeans.centres(rows, 12, spherical=True, seed=seed, gpu=False)
    pairs = np.zeros((12, classes_of.max() + 1))
    np.add.at(pairs, ((rows @ found.T).argmax(axis=1), classes_of), 1)
    return pairs.max(axis=1).sum() / len(rows)


def test_distances_are_the_likelihood_ratio_of_the_clusters_of_one_run() -> None:
    points, _ = stretched()
    found = discriminant.fit(points, 16, **{**CHOICES, "runs": 1})
    generator = np.random.default_rng([0, 0])
    drawn = generator.choice(len(points), len(points), replace=False)
    start = int(generator.integers(2**31))
    centres = kmeans.centres(points[drawn], 6, spherical=True, seed=start, gpu=False)
    ids = (points @ centres.T).argmax(axis=1)
    means = np.stack([points[ids == j].mean(axis=0) for j in range(6)])
    floor = discriminant.FLOOR * points.var(axis=0).mean() * np.eye(16)
    inside = np.cov((points - means[ids]).T, bias=True) + floor
    whole = np.cov(points.T, bias=True) + floor
    wanted = np.linalg.inv(inside) - np.linalg.inv(whole)
    metric = found.projection @ found.projection.T
    np.testing.assert_allclose(metric, wanted, atol=2e-3 * np.abs(wanted).max())


def test_directions_in_which_clusters_do_not_differ_vanish() -> None:
    points, _ = stretched()
    lengths = np.linalg.norm(
        discriminant.fit(points, 16, **{**CHOICES, "runs": 1}).projection, axis=0
    )
    assert (lengths[5:] < 1e-2 * lengths[0]).all()  # six means span five directions


def test_fewer_patches_than_channels_give_a_finite_metric() -> None:
    points, _ = stretched()
    found = discriminant.fit(points[::150], 16, **{**CHOICES, "clusters": 4})
    assert len(points[::150]) < 16
    assert np.isfinite(found.projection).all()


def test_clusters_under_the_metric_follow_classes_that_noise_hides() -> None:
    points, classes_of = stretched()
    choices = {**CHOICES, "clusters": LEAST_COARSE}  # six alone would follow the noise
    rows = discriminant.fit(points, 16, **choices).rows(points)
    seeds = range(3)
    before = np.mean([purity(points, classes_of, seed) for seed in seeds])
    after = np.mean([purity(rows, classes_of, seed) for seed in seeds])
    assert after > before + 0.1


def test_fewer_dimensions_are_the_first_and_the_seed_gives_the_same_bytes() -> None:
    points, _ = stretched()
    whole = discriminant.fit(points, 16, **CHOICES)
    few = discriminant.fit(points, 5, **CHOICES)
    assert np.array_equal(few.projection, whole.projection[:, :5])
    assert not np.array_equal(discriminant.fit(points, 5, **{**CHOICES, "seed": 1})[1], few[1])
    spread = np.square((points - whole.mean) @ whole.projection).mean(axis=0)
    assert (np.diff(spread) <= 1e-4 * spread[0]).all()  # first what tells clusters apart best


@pytest.mark.parametrize(
    ("clusters", "given", "patches", "expected"),
    [(4, None, 288, 32), (4, None, 20, 20), (4, 3, 288, 3), (256, None, 9000, 128)],
)
def test_the_metric_is_of_half_the_clusters_but_some_tens_at_least(
    clusters: int, given: int | None, patches: int, expected: int
) -> None:
    start = DiscriminantStart(clusters, 10.0, 0, False, given, 5)
    assert start.coarse_clusters(patches) == expected


@pytest.mark.parametrize("width", [16, 5])
def test_a_head_starts_as_kmeans_under_the_metric(width: int) -> None:
    points, _ = stretched()
    metric = discriminant.fit(points, width, **CHOICES)
    # What the LayerNorm would take away is taken away first.
    level = metric.projection - metric.projection.mean(axis=1, keepdims=True)
    metric = Discriminant(metric.mean, level)
    rows = metric.rows(points)
    centres = kmeans.centres(rows, 7, spherical=True, seed=0, gpu=False)
    head = Head([16], 7, width, 1, 1, 20, level_norm=False, orthogonal=False)
    start_at(head, centres, 10.0, metric)
    logits = head(torch.from_numpy(points), [700, 500])[1].detach().numpy()
    np.testing.assert_allclose(logits, 10 * rows @ centres.T, atol=0.02)


def test_a_metric_needs_a_projection() -> None:
    points, _ = stretched()
    metric = discriminant.fit(points, 16, **CHOICES)
    head = Head([16], 7, None, 1, 16, 20, level_norm=False, orthogonal=False)
    with pytest.raises(ValueError, match="or project them to discriminants"):
        start_at(head, np.eye(7, 16, dtype=np.float32), 10.0, metric)

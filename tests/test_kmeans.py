"""K-means: fitting, pre-processing, scores and the plan of the sample."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.features import whitening as features_whitening
from pipeline.features.tiles import sample_plan
from pipeline.features.whitening import whitening
from pipeline.head import kmeans


def blobs(count: int = 8, each: int = 60, channels: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Well separated blobs: float32 ``(n, channels)`` and the blob of each point."""
    rng = np.random.default_rng(3)
    centres = 10 * np.linalg.qr(rng.normal(size=(channels, channels)))[0][:count]
    labels = np.repeat(np.arange(count), each)
    noise = rng.normal(scale=0.3, size=(len(labels), channels))
    return (centres[labels] + noise).astype(np.float32), labels


def fit(points: np.ndarray, clusters: int, **choices: object) -> kmeans.KMeans:
    defaults = {"spherical": True, "whiten": None, "seed": 0}
    return kmeans.fit(points, clusters, **{**defaults, **choices})  # type: ignore[arg-type]


@pytest.mark.parametrize("whiten", [None, 7])
@pytest.mark.parametrize("spherical", [True, False])
def test_separated_blobs_are_found(spherical: bool, whiten: int | None) -> None:
    points, labels = blobs()
    # More centres than blobs, so that a poor draw of first centres leaves no blob without one.
    model = fit(points, 24, spherical=spherical, whiten=whiten)
    found = kmeans.scores(model, points).argmax(axis=1)
    owners = [np.unique(labels[found == cluster]) for cluster in np.unique(found)]
    assert all(len(blob) == 1 for blob in owners)
    assert model.centroids.shape == (24, whiten or 12)
    assert model.centroids.dtype == np.float32


@pytest.mark.parametrize("whiten", [None, 5])
def test_euclidean_scores_order_as_distances(whiten: int | None) -> None:
    points, _ = blobs()
    model = fit(points, 10, spherical=False, whiten=whiten)
    tokens = np.random.default_rng(0).normal(size=(50, 12)).astype(np.float32)
    prepared = kmeans.prepare(model, tokens)
    squared = np.square(prepared[:, None] - model.centroids).sum(axis=2)
    expected = np.square(prepared).sum(axis=1, keepdims=True) - squared
    np.testing.assert_allclose(kmeans.scores(model, tokens), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("whiten", [None, 5])
def test_spherical_scores_are_cosines(whiten: int | None) -> None:
    points, _ = blobs()
    model = fit(points, 10, whiten=whiten)
    np.testing.assert_allclose(np.linalg.norm(model.centroids, axis=1), 1, atol=1e-5)
    found = kmeans.scores(model, points)
    assert found.dtype == np.float32
    assert np.abs(found).max() <= 1 + 1e-5
    np.testing.assert_allclose(kmeans.scores(model, 7 * points), found, atol=1e-5)


def test_centroids_are_means_of_their_points() -> None:
    points, _ = blobs()
    model = fit(points, 8, spherical=False, seed=1)
    found = kmeans.scores(model, points).argmax(axis=1)
    means = np.stack([points[found == cluster].mean(axis=0) for cluster in range(8)])
    np.testing.assert_allclose(model.centroids, means, atol=1e-3)


def test_whitening_gives_the_identity_as_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_whitening, "BLOCK", 128)  # several blocks
    rng = np.random.default_rng(0)
    points = (rng.normal(size=(1000, 9)) @ rng.normal(size=(9, 9)) + 5).astype(np.float32)
    mean, projection = whitening(points, 6)
    whitened = (points - mean).astype(np.float64) @ projection
    np.testing.assert_allclose(whitened.T @ whitened / len(points), np.eye(6), atol=1e-3)
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-4)
    variances = np.linalg.eigvalsh(np.cov(points.T, bias=True))[::-1]
    lengths = np.linalg.norm(projection, axis=0)  # the largest variances come first
    np.testing.assert_allclose(lengths, 1 / np.sqrt(variances[:6]), rtol=1e-3)


def test_prepared_tokens_are_white() -> None:
    points = blobs()[0] + 50
    prepared = kmeans.prepare(fit(points, 4, spherical=False, whiten=3), points)
    np.testing.assert_allclose(prepared.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(prepared.T, bias=True), np.eye(3), atol=1e-2)


def test_whitening_does_not_blow_up_directions_without_variance() -> None:
    rng = np.random.default_rng(0)
    points = (rng.normal(size=(500, 3)) @ rng.normal(size=(3, 8))).astype(np.float32)
    mean, projection = whitening(points, 8)
    variances = np.var((points - mean) @ projection, axis=0)
    np.testing.assert_allclose(variances[:3], 1, atol=1e-3)
    assert variances[3:].max() < 0.01


def test_same_seed_same_centroids() -> None:
    points, _ = blobs()
    first, again, other = (fit(points, 10, seed=seed).centroids for seed in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_arguments_are_left_alone_and_few_points_are_no_noise(
    capfd: pytest.CaptureFixture[str],
) -> None:
    points, _ = blobs(each=2)
    before = points.copy()
    model = fit(points, len(points), whiten=4)
    assert model.centroids.shape == (len(points), 4)
    np.testing.assert_array_equal(points, before)
    assert capfd.readouterr() == ("", "")


def test_all_points_are_used() -> None:
    """FAISS takes 256 points per centre by default; the caller has sampled already."""
    points = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
    (centroid,) = fit(points, 1, spherical=False).centroids
    np.testing.assert_allclose(centroid, points.mean(axis=0), atol=1e-5)


def test_faults_name_rule_value_and_way_out() -> None:
    points, _ = blobs()
    with pytest.raises(ValueError, match=r"found 480 points for 481 clusters: lower the number"):
        fit(points, 481)
    with pytest.raises(ValueError, match=r"whitening keeps .* found 13 for 12 channels"):
        fit(points, 4, whiten=13)
    points[7, 3] = np.nan
    with pytest.raises(ValueError, match=r"finite points, found NaN or infinity first in row 7"):
        fit(points, 4)


def test_sample_plan_is_uniform() -> None:
    sizes = [3, 0, 40, 7]
    counts = [np.zeros(size) for size in sizes]
    rng = np.random.default_rng(0)
    rounds = 3000
    for _ in range(rounds):
        plan = sample_plan(sizes, 10, rng)
        assert sum(map(len, plan)) == 10
        for count, chosen in zip(counts, plan, strict=True):
            np.testing.assert_array_equal(chosen, np.unique(chosen))  # ascending, no token twice
            count[chosen] += 1
    shares = np.concatenate(counts) / rounds
    assert np.abs(shares - 10 / 50).max() < 5 * np.sqrt(0.2 * 0.8 / rounds)


def test_sample_plan_is_deterministic_and_takes_all_there_is() -> None:
    first, again = (sample_plan([900] * 50, 1000, np.random.default_rng(1)) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    for wanted in (5, 6):
        plan = sample_plan([2, 3], wanted, np.random.default_rng(0))
        assert [rows.tolist() for rows in plan] == [[0, 1], [0, 1, 2]]
    assert sample_plan([], 5, np.random.default_rng(0)) == []


def test_sample_plan_of_a_huge_cache_needs_little_memory() -> None:
    plan = sample_plan([10**9] * 1000, 100, np.random.default_rng(0))
    assert sum(map(len, plan)) == 100
    assert all(0 <= row < 10**9 for rows in plan for row in rows)

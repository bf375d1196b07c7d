"""Evaluation against values worked out by hand and a pixel-by-pixel reference."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest

from pipeline.evaluation import (
    MATCHINGS,
    confusion,
    count,
    hungarian,
    majority_count,
    majority_iou,
    scores,
)

Matching = Callable[[np.ndarray], np.ndarray]

# Cluster 1 has most pixels of class 0, but that class is large: its IoU is larger with class 1.
DIFFERING = np.array([[90, 0], [6, 4], [0, 1]])


def test_count_tallies_pairs_and_never_ignored_pixels() -> None:
    clusters = np.array([[0, 0, 2], [2, 2, 1]], dtype=np.uint16)
    labels = np.array([[1, 255, 0], [0, 1, 255]], dtype=np.uint8)
    counts = count(clusters, labels, 4, 2)
    assert counts.dtype == np.int64
    assert counts.tolist() == [[0, 1], [0, 0], [2, 1], [0, 0]]


def test_count_of_parts_adds_up_to_count_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    clusters, labels = rng.integers(0, 300, 999), rng.integers(0, 7, 999).astype(np.uint8)
    parts = count(clusters[:400], labels[:400], 300, 7) + count(
        clusters[400:], labels[400:], 300, 7
    )
    np.testing.assert_array_equal(parts, count(clusters, labels, 300, 7))


def test_count_with_another_ignore_value() -> None:
    counts = count(np.array([0, 1]), np.array([-1, 0]), 2, 1, ignore=-1)
    assert counts.tolist() == [[0], [1]]


@pytest.mark.parametrize(
    ("clusters", "labels", "text"),
    [
        ([0, 1], [0, 1, 1], r"must have one shape, found \(2,\) and \(3,\)"),
        ([0, 3], [0, 1], r"every cluster must lie in 0..2, found \[3\]"),
        ([0, 1], [0, 2], r"every label must lie in 0..1, found \[2\]"),
        ([0, 1], [0, -1], r"every label must lie in 0..1, found \[-1\]"),
    ],
)
def test_count_rejects_what_cannot_be_counted(
    clusters: list[int], labels: list[int], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        count(np.array(clusters), np.array(labels), 3, 2)


def test_the_majorities_differ_where_a_class_is_large() -> None:
    # IoU of cluster 1: with class 0 6 / (10 + 96 - 6) = .06, with class 1 4 / (10 + 5 - 4) = .36.
    assert majority_iou(DIFFERING).tolist() == [0, 1, 1]
    assert majority_count(DIFFERING).tolist() == [0, 0, 1]


def test_majority_iou_may_take_a_class_of_few_pixels() -> None:
    # 60 of 61 pixels of the cluster are sky (of 1000), the last is the only pixel of "bird":
    # sky 60 / (61 + 1000 - 60) = .0599, bird 1 / (61 + 1 - 1) = .0164.
    counts = np.array([[60, 1], [940, 0]])
    assert majority_iou(counts).tolist() == [0, 0]
    # With 10000 pixels of sky its IoU falls to 60 / 10001 = .0060 and the bird wins.
    counts = np.array([[60, 1], [9940, 0]])
    assert majority_iou(counts).tolist() == [1, 0]
    assert majority_count(counts).tolist() == [0, 0]


def test_ties_go_to_the_first_class() -> None:
    counts = np.array([[5, 5], [5, 5]])
    assert majority_iou(counts).tolist() == majority_count(counts).tolist() == [0, 0]


@pytest.mark.parametrize("matching", MATCHINGS.values(), ids=MATCHINGS)
def test_empty_clusters_are_unmatched(matching: Matching) -> None:
    mapping = matching(np.array([[0, 0], [0, 7], [0, 0], [3, 0]]))
    assert mapping.dtype == np.int64
    assert mapping.tolist() == [-1, 1, -1, 0]


@pytest.mark.parametrize("matching", MATCHINGS.values(), ids=MATCHINGS)
def test_matchings_leave_the_counts_alone(matching: Matching) -> None:
    counts = DIFFERING.copy()
    counts.flags.writeable = False
    matching(counts)
    confusion(counts, majority_count(counts))


def test_hungarian_with_more_clusters_than_classes() -> None:
    # Both clusters 0 and 1 want class 0: 8 + 2 (total 10) beats 9 + 0.
    counts = np.array([[8, 0], [9, 2], [1, 1]])
    mapping = hungarian(counts)
    assert mapping.tolist() == [0, 1, -1]
    matrix = confusion(counts, mapping)
    assert matrix.tolist() == [[8, 9, 1], [0, 2, 1]]
    found = scores(matrix)
    # Unmatched pixels are missed by their class, but claimed by none:
    # class 0: 8 / (18 + 8 - 8); class 1: 2 / (3 + 11 - 2).
    np.testing.assert_allclose(found.iou, [100 * 8 / 18, 100 * 2 / 12])
    assert found.accuracy == pytest.approx(100 * 10 / 21)
    assert found.classes_covered == 2


def test_hungarian_with_fewer_clusters_than_classes() -> None:
    counts = np.array([[5, 4, 0], [6, 0, 0]])
    mapping = hungarian(counts)
    assert mapping.tolist() == [1, 0]
    found = scores(confusion(counts, mapping))
    np.testing.assert_allclose(found.iou[:2], [100 * 6 / 11, 100 * 4 / 9])
    assert np.isnan(found.iou[2])
    assert found.miou == pytest.approx((100 * 6 / 11 + 100 * 4 / 9) / 2)


def test_hungarian_pairs_without_a_common_pixel_are_no_match() -> None:
    assert hungarian(np.array([[9, 0], [8, 0]])).tolist() == [0, -1]


def test_hungarian_is_the_best_of_all_permutations() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        counts = rng.integers(0, 50, (4, 4))
        best = max(sum(counts[i, p[i]] for i in range(4)) for p in permutations(range(4)))
        mapping = hungarian(counts)
        assert sum(counts[i, c] for i, c in enumerate(mapping) if c >= 0) == best
        matched = mapping[mapping >= 0]
        assert len(np.unique(matched)) == len(matched)


def test_confusion_merges_clusters_of_one_class() -> None:
    matrix = confusion(np.array([[1, 2], [10, 20], [100, 200]]), np.array([1, 1, -1]))
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[0, 11, 100], [0, 22, 200]]


@pytest.mark.parametrize("mapping", [[0], [0, 2, 1], [0, -2, 1]])
def test_confusion_rejects_a_mapping_of_other_clusters_or_classes(mapping: list[int]) -> None:
    with pytest.raises(ValueError, match=r"each of 3 clusters a class in -1..1, found \["):
        confusion(DIFFERING, np.array(mapping))


def test_scores_of_a_known_matrix() -> None:
    found = scores(np.array([[6, 2, 0], [1, 3, 0]]))
    np.testing.assert_allclose(found.iou, [100 * 6 / 9, 50.0])
    assert found.miou == pytest.approx((100 * 6 / 9 + 50) / 2)
    assert found.accuracy == pytest.approx(75.0)


def test_an_absent_class_counts_neither_in_the_mean_nor_as_zero() -> None:
    # Class 1 has no pixel, though a cluster fitted elsewhere claims some for it.
    found = scores(np.array([[8, 2, 0], [0, 0, 0]]))
    assert found.miou == pytest.approx(80.0)
    assert np.isnan(found.iou[1])
    assert found.classes_covered == 2


def test_a_missed_class_counts_as_zero() -> None:
    found = scores(np.array([[5, 0, 0], [0, 0, 5]]))
    assert found.iou.tolist() == [100.0, 0.0]
    assert (found.miou, found.accuracy, found.classes_covered) == (50.0, 50.0, 1)


def test_scores_need_a_valid_pixel() -> None:
    with pytest.raises(ValueError, match="at least one valid pixel, found none"):
        scores(np.zeros((3, 4), dtype=np.int64))


def test_perfect_clusters_score_100_under_every_matching() -> None:
    labels = np.array([0, 1, 2, 2, 255])
    counts = count(np.array([2, 0, 1, 1, 1]), labels, 3, 3)
    for fit in MATCHINGS.values():
        found = scores(confusion(counts, fit(counts)))
        assert (found.miou, found.accuracy, found.classes_covered) == (100.0, 100.0, 3)


@pytest.mark.parametrize("name", MATCHINGS)
def test_scores_equal_a_computation_pixel_by_pixel(name: str) -> None:
    rng = np.random.default_rng(2)
    k, n_classes = 9, 4
    clusters = rng.integers(0, k - 1, (20, 30)).astype(np.uint16)
    labels = ((clusters // 2 + (rng.random((20, 30)) < 0.4)) % n_classes).astype(np.uint8)
    labels[rng.random((20, 30)) < 0.1] = 255
    counts = count(clusters, labels, k, n_classes)
    mapping = MATCHINGS[name](counts)
    found = scores(confusion(counts, mapping))
    valid = labels != 255
    predicted = mapping[clusters]
    ious = []
    for c in range(n_classes):
        both = (predicted == c) & (labels == c) & valid
        either = ((predicted == c) | (labels == c)) & valid
        ious.append(100 * both.sum() / either.sum())
    np.testing.assert_allclose(found.iou, ious)
    assert found.miou == pytest.approx(np.mean(ious))
    assert found.accuracy == pytest.approx(100 * (predicted == labels)[valid].mean())
    if name == "majority_iou":
        for cluster in range(k - 1):
            mask = (clusters == cluster) & valid
            with_class = [
                (mask & (labels == c)).sum() / (mask | (labels == c)).sum()
                for c in range(n_classes)
            ]
            assert mapping[cluster] == np.argmax(with_class)

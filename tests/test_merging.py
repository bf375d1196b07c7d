"""Merging of clusters: against a written-out average linkage, and what it must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.maps.merging import merge, merge_scores


def slow_average_linkage(centres: np.ndarray, segments: int) -> set[frozenset[int]]:
    """The pair of groups with the least mean cosine distance is joined, again and again."""
    unit = centres / np.linalg.norm(centres, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    groups = [[i] for i in range(len(centres))]
    while len(groups) > segments:
        means = {
            (a, b): distance[np.ix_(groups[a], groups[b])].mean()
            for a in range(len(groups))
            for b in range(a)
        }
        a, b = min(means, key=means.__getitem__)
        groups[b] += groups.pop(a)
    return {frozenset(group) for group in groups}


@pytest.mark.parametrize("segments", [1, 2, 7, 19, 20])
def test_merge_is_average_linkage_of_cosines(segments: int) -> None:
    centres = np.random.default_rng(segments).normal(size=(20, 6)).astype(np.float32)
    found = merge(centres, segments)
    groups = {frozenset(np.flatnonzero(found == s).tolist()) for s in range(segments)}
    assert groups == slow_average_linkage(centres, segments)


def test_segments_are_numbered_by_their_first_clusters_and_lengths_do_not_count() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, 5)).astype(np.float32)
    found = merge(centres, 8)
    assert np.unique(found, return_index=True)[1].tolist() == sorted(
        int(np.flatnonzero(found == s)[0]) for s in range(8)
    )
    longer = centres * rng.uniform(1, 9, size=(30, 1)).astype(np.float32)
    assert np.array_equal(merge(longer, 8), found)


def test_merging_further_joins_whole_segments() -> None:
    centres = np.random.default_rng(1).normal(size=(40, 5)).astype(np.float32)
    many, few = merge(centres, 15), merge(centres, 4)
    assert all(len(np.unique(few[many == s])) == 1 for s in range(15))


def test_a_segment_scores_as_its_best_cluster() -> None:
    scores = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))
    segment_of = np.array([0, 1, 0, 2, 1, 0])
    found = merge_scores(scores, segment_of)
    assert torch.equal(found[0], torch.maximum(torch.maximum(scores[0], scores[2]), scores[5]))
    assert torch.equal(found[2], scores[3])
    ids = torch.from_numpy(segment_of)[scores.argmax(dim=0)]
    assert torch.equal(found.argmax(dim=0), ids)  # at the patches: the cluster's segment


def test_more_segments_than_clusters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"to 1 to 5 segments, .* found 6"):
        merge(np.eye(5, dtype=np.float32), 6)

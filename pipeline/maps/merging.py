"""Fewer segments than clusters, without labels: clusters whose centres are alike become one."""

from __future__ import annotations

import numpy as np
import torch
from scipy.cluster.hierarchy import cut_tree, linkage
from torch import Tensor


def merge(centres: np.ndarray, segments: int) -> np.ndarray:
    """Merge clusters by average linkage of the cosines between their centres.

    How many patches a cluster holds does not count, so that a small class of its own (a sign, a
    pole) is not merged before halves of a large one, as Ward's linkage and K-means would have it.

    Args:
        centres: float32 ``(K, d)``, none of length 0.
        segments: wanted, at most K.

    Returns:
        int64 ``(K,)``: the segment of each cluster, numbered in the order of their first clusters.

    Raises:
        ValueError: there are more segments than clusters.
    """
    if not 1 <= segments <= len(centres):
        raise ValueError(
            f"clusters can be merged to 1 to {len(centres)} segments, as many as there are, found "
            f"{segments}"
        )
    tree = linkage(centres.astype(np.float64), "average", metric="cosine")
    return cut_tree(tree, segments)[:, 0].astype(np.int64)


def merge_scores(scores: Tensor, segment_of: np.ndarray) -> Tensor:
    """The best score in every segment: ``(K, h, w)`` -> ``(segments, h, w)``.

    Args:
        segment_of: of `merge`.
    """
    places = torch.from_numpy(segment_of).to(scores.device)
    shape = (int(segment_of.max()) + 1, *scores.shape[1:])
    index = places[:, None, None].expand_as(scores)
    return scores.new_full(shape, -torch.inf).scatter_reduce(0, index, scores, "amax")

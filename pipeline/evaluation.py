"""Scores of cluster maps: everything follows from a K x C table of pixel counts.

The table is counted image by image (`count`), a matching turns it into a mapping from clusters to
classes, and mapping and table give the confusion matrix and the scores. A mapping may come from the
table that is scored (an oracle: it has seen the answers) or from another split's table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

UNMATCHED = -1


class Scores(NamedTuple):
    """Scores of one confusion matrix, in percent.

    Attributes:
        miou: mean IoU over the classes that are present in the ground truth.
        accuracy: correct / valid pixels.
        iou: float64 ``(C,)``, IoU = TP / (TP + FP + FN); NaN where the class is absent.
        classes_covered: number of classes that some pixel is predicted to be.
    """

    miou: float
    accuracy: float
    iou: np.ndarray
    classes_covered: int


def count(
    clusters: np.ndarray, labels: np.ndarray, k: int, n_classes: int, ignore: int = 255
) -> np.ndarray:
    """Count the pixels of every (cluster, class) pair; pixels labelled ``ignore`` never count.

    Args:
        clusters: integers ``(n,)`` or any other shape, in ``0..k-1``.
        labels: integers of the same shape, in ``0..n_classes-1`` or ``ignore``.

    Returns:
        int64 ``(k, n_classes)``. Tables of several images add up.

    Raises:
        ValueError: the shapes differ, or a cluster or label is out of its range.
    """
    if clusters.shape != labels.shape:
        raise ValueError(
            f"clusters and labels must have one shape, found {clusters.shape} and {labels.shape}: "
            "compare maps of the same image at the same resolution."
        )
    valid = labels != ignore
    cluster, label = clusters[valid].astype(np.int64), labels[valid].astype(np.int64)
    _check_range("cluster", cluster, k)
    _check_range("label", label, n_classes)
    pairs = np.bincount(cluster * n_classes + label, minlength=k * n_classes)
    return pairs.reshape(k, n_classes).astype(np.int64)


def _check_range(name: str, values: np.ndarray, end: int) -> None:
    if values.size and (values.min() < 0 or values.max() >= end):
        wrong = np.unique(values[(values < 0) | (values >= end)])[:10].tolist()
        raise ValueError(
            f"every {name} must lie in 0..{end - 1}, found {wrong}: "
            f"the maps were made for another number of {name}s."
        )


def majority_iou(counts: np.ndarray) -> np.ndarray:
    """Each cluster takes the class with which its IoU is largest.

    ``IoU(k, c) = n_kc / (n_k + n_c - n_kc)``; ties go to the first class. Released programs call
    this "majority voting"; unlike `majority_count` it favours small classes.

    Args:
        counts: int64 ``(K, C)``.

    Returns:
        int64 ``(K,)``, -1 for clusters without a pixel.
    """
    union = counts.sum(1, keepdims=True) + counts.sum(0, keepdims=True) - counts
    return _first_best(counts, counts / np.maximum(union, 1))


def majority_count(counts: np.ndarray) -> np.ndarray:
    """Each cluster takes the class that most of its pixels have; ties go to the first class.

    Args:
        counts: int64 ``(K, C)``.

    Returns:
        int64 ``(K,)``, -1 for clusters without a pixel.
    """
    return _first_best(counts, counts)


def _first_best(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(counts.any(axis=1), values.argmax(axis=1), UNMATCHED).astype(np.int64)


def hungarian(counts: np.ndarray) -> np.ndarray:
    """One-to-one matching that maximises the number of correct pixels.

    With K > C the other clusters stay unmatched, with K < C some classes do. A pair without a
    common pixel is no match: it adds nothing to the sum that is maximised.

    Args:
        counts: int64 ``(K, C)``.

    Returns:
        int64 ``(K,)``, -1 for unmatched clusters.
    """
    clusters, classes = linear_sum_assignment(counts, maximize=True)
    mapping = np.full(len(counts), UNMATCHED, dtype=np.int64)
    shared = counts[clusters, classes] > 0
    mapping[clusters[shared]] = classes[shared]
    return mapping


MATCHINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "majority_iou": majority_iou,
    "majority_count": majority_count,
    "hungarian": hungarian,
}


def confusion(counts: np.ndarray, mapping: np.ndarray) -> np.ndarray:
    """Merge clusters into the classes they are mapped to.

    Args:
        counts: int64 ``(K, C)``, pixels by cluster and true class.
        mapping: int64 ``(K,)``, a class or -1.

    Returns:
        int64 ``(C, C + 1)``: rows are true classes, columns predicted ones. The last column holds
        the pixels of unmatched clusters: missed by their class, claimed by no other.

    Raises:
        ValueError: the mapping is for another number of clusters or classes.
    """
    k, n_classes = counts.shape
    if mapping.shape != (k,) or np.any(mapping < UNMATCHED) or np.any(mapping >= n_classes):
        raise ValueError(
            f"a mapping must give each of {k} clusters a class in -1..{n_classes - 1}, found "
            f"{mapping.tolist()}: fit it on counts of the same clusters and classes."
        )
    merged = np.zeros((n_classes + 1, n_classes), dtype=np.int64)
    np.add.at(merged, mapping, counts)  # -1 is the last row
    return merged.T


def scores(matrix: np.ndarray) -> Scores:
    """Score a confusion matrix over a whole split.

    Args:
        matrix: int64 ``(C, C + 1)`` of `confusion`.

    Raises:
        ValueError: no pixel was counted.
    """
    n_classes = len(matrix)
    total = matrix.sum()
    if total == 0:
        raise ValueError(
            "scores need at least one valid pixel, found none: every label of the split is 255 "
            "(ignore). Evaluate a split that is labelled."
        )
    correct = matrix.diagonal()
    actual, predicted = matrix.sum(axis=1), matrix[:, :n_classes].sum(axis=0)
    iou = np.full(n_classes, np.nan)
    present = actual > 0
    iou[present] = 100.0 * correct[present] / (actual + predicted - correct)[present]
    return Scores(
        miou=float(iou[present].mean()),
        accuracy=float(100.0 * correct.sum() / total),
        iou=iou,
        classes_covered=int(np.count_nonzero(predicted)),
    )

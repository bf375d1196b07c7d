"""What the values of label maps mean, and how they are drawn over photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cache import predictions
from cache.names import NO_CLASS, PREDICTOR, Names, read_names
from cache.store.errors import InputError
from stages.colours import class_colours, colour, overlay, palette

OPACITY = 0.6


class Naming(NamedTuple):
    """What the label maps hold: ``values[cluster]``, and uint8 ``(n, 3)`` colours by value."""

    values: np.ndarray
    colours: np.ndarray
    classes: list[str]


def cluster_names(k: int) -> Naming:
    """Label values are the ids of the K clusters, with the report's colours."""
    values = np.arange(k, dtype=np.uint8 if k <= 256 else np.uint16)
    return Naming(values, palette(k), [])


def class_names(mapping: np.ndarray, classes: list[str]) -> Naming:
    """Label values are the indices of the clusters' classes ``(K,)``, with the report's colours."""
    values = np.where(mapping < 0, NO_CLASS, mapping).astype(np.uint8)
    return Naming(values, class_colours(len(classes)), classes)


def given_names(names: Names) -> Naming:
    """Label values are the indices of the names that a person gave."""
    return Naming(names.values, class_colours(len(names.classes)), names.classes)


def segments_of(manifest: dict[str, Any], merge_to: int | None) -> int:
    """How many segments the clusters of a head are merged to."""
    k = manifest["head"]["clusters"]
    if merge_to is not None and merge_to > k:
        raise InputError(f"--merge-to must not exceed the {k} clusters of the head: lower it.")
    return merge_to or k


def check_names(naming: Naming, k: int) -> None:
    """Raise InputError unless there is a name, or none, for each of k segments."""
    if len(naming.values) != k:
        raise InputError(
            f"the mapping must be of {k} segments, found one of {len(naming.values)}: give "
            f"--merge-to {len(naming.values)}, or --mapping none."
        )


def find_names(path: str, manifest: dict[str, Any], predictor: str, k: int) -> Names:
    """The names that a person gave to the clusters of this head; its predictor must be theirs."""
    if predictor != PREDICTOR:
        raise InputError(f"--names are of {PREDICTOR}, found --predictor {predictor}: omit one.")
    return read_names(path, manifest["fingerprint"], k)


def write_named(
    out: str | Path, name: str, image: np.ndarray, labels: np.ndarray, naming: Naming
) -> np.ndarray:
    """Write the label map of a photo and, with a legend below, its overlay.

    Args:
        image: uint8 ``(H, W, 3)``.
        labels: uint8 ``(H, W)``, `NO_CLASS` where there is none.

    Returns:
        int64 ``(classes + 1,)``: pixels of every class and, last, of none.
    """
    n = len(naming.classes)
    picture = overlay(image, labels, naming.colours, OPACITY)
    areas = np.bincount(np.minimum(labels, n).ravel(), minlength=n + 1)
    present = np.flatnonzero(areas)
    words = [*naming.classes, "no class"]
    picture = predictions.legend_below(
        picture, [words[i] for i in present], naming.colours[present]
    )
    predictions.write_prediction(out, name, labels, png_colours(naming), picture)
    return areas


def write_plain(
    out: str | Path, name: str, image: np.ndarray, labels: np.ndarray, naming: Naming
) -> None:
    """Write the label map of a photo and its overlay; arguments as in `write_named`."""
    picture = overlay(image, labels, naming.colours, OPACITY)
    predictions.write_prediction(out, name, labels, png_colours(naming), picture)


def png_colours(naming: Naming) -> np.ndarray:
    """uint8 ``(256, 3)`` by label value, where 255 may mean "no class"."""
    return colour(np.arange(NO_CLASS + 1), naming.colours)

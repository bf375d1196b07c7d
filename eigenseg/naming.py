"""Naming: what the values of label maps mean, and their colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cache.names import NO_CLASS, PREDICTOR, Names, read_names
from cache.results import read_mappings
from cache.store.artefact import read_json
from cache.store.errors import InputError
from pipeline.drawing.colours import class_colours, colour, palette


class Naming(NamedTuple):
    """What label maps hold.

    Attributes:
        values: ``(K,)``, the label value of each cluster; uint8, or uint16 for many clusters
            without names. `NO_CLASS` means no class.
        colours: uint8 ``(n, 3)`` by label value; the last one, of classes, means no class.
        classes: names by label value; empty where label values are the ids of clusters.
    """

    values: np.ndarray
    colours: np.ndarray
    classes: list[str]

    @property
    def png_colours(self) -> np.ndarray:
        """Colours of all 8-bit label values, uint8 ``(256, 3)``."""
        return colour(np.arange(NO_CLASS + 1), self.colours)


def cluster_naming(k: int) -> Naming:
    """Let label values be the ids of K clusters."""
    return Naming(np.arange(k, dtype=np.uint8 if k <= 256 else np.uint16), palette(k), [])


def class_naming(mapping: np.ndarray, classes: list[str]) -> Naming:
    """Let label values be the indices of the clusters' classes ``(K,)``, -1 for none."""
    values = np.where(mapping < 0, NO_CLASS, mapping).astype(np.uint8)
    return Naming(values, class_colours(len(classes)), classes)


def given_naming(names: Names) -> Naming:
    """Let label values be the indices of the names that a person gave."""
    return Naming(names.values, class_colours(len(names.classes)), names.classes)


def read_naming(
    path: str | Path, manifest: dict[str, Any], k: int, predictor: str, matching: str
) -> Naming:
    """Read the names of clusters from names.json of the atlas, or from mapping.json of `eval`.

    Args:
        manifest: of the head whose clusters are named.
        k: number of clusters, or of the segments that they are merged to.

    Raises:
        InputError: the file is missing, of neither kind, or of another head, predictor or K.
    """
    way_out = "run `eigenseg eval` for mapping.json, or save names.json on the atlas."
    head, value = manifest["fingerprint"], read_json(path, way_out)
    if not isinstance(value, dict) or "datasets" not in value:
        if predictor != PREDICTOR:
            raise InputError(
                f"{path} names clusters of {PREDICTOR}, found predictor {predictor}: omit one."
            )
        return given_naming(read_names(path, head, k))
    mapping = next(iter(read_mappings(path).values()))
    if mapping.head != head:
        raise InputError(
            f"{path} must belong to this head ({head}), found the mapping of {mapping.head}: "
            "run `eigenseg eval` (or `dvc repro eval`) with this head."
        )
    if mapping.fitted_on is None:
        raise InputError(f"{path} must name classes, found none: there were no labels.")
    return class_naming(mapping.clusters[predictor][matching], mapping.classes)


def check_naming(naming: Naming, k: int) -> None:
    """Raise InputError unless there is a name, or none, for each of k segments."""
    if len(naming.values) != k:
        raise InputError(
            f"the mapping must be of {k} segments, found one of {len(naming.values)}: give "
            f"--merge-to {len(naming.values)}, or --mapping none."
        )


def segments_of(manifest: dict[str, Any], merge_to: int | None) -> int:
    """Return the number of segments that the clusters of a head are merged to."""
    k = manifest["head"]["clusters"]
    if merge_to is not None and merge_to > k:
        raise InputError(f"--merge-to must not exceed the {k} clusters of the head: lower it.")
    return merge_to or k

"""Naming: what the values of label maps mean, and their colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from pipeline.drawing.colours import class_colours, colour, palette
from pipeline.maps.named import named, region_pixels

NO_CLASS = 255  # label value of pixels without a class


class Naming(NamedTuple):
    """Meaning and colours of label values.

    Attributes:
        values: ``(K,)``, the label value of each cluster; uint8, or uint16 for many clusters
            without names. `NO_CLASS` means no class.
        colours: uint8 ``(n, 3)`` by label value; the last one, of classes, means no class.
        classes: names by label value; empty where label values are the ids of clusters.
        splits: of clusters whose parts have names of their own, uint8 ``(K,)``: the label value by
            the best other cluster.
        corrections: single regions of photos (`cache.names.Correction`) with another label value.
    """

    values: np.ndarray
    colours: np.ndarray
    classes: list[str]
    splits: Mapping[int, np.ndarray] = MappingProxyType({})
    corrections: Sequence[Any] = ()

    def labels(
        self, ids: np.ndarray, seconds: np.ndarray | None = None, sha256: str | None = None
    ) -> np.ndarray:
        """Make the label map of a photo: ``(H, W)`` of `values`.

        Args:
            ids: clusters ``(H, W)``.
            seconds: ``(h, w)``, those that came second at the patch grid; for splits.
            sha256: of the photo's file, by which corrections know it.
        """
        labels = named(ids, seconds, self.values, self.splits)
        for one in self.corrections:
            if one.sha256 == sha256:
                labels[region_pixels(one.cells, ids, one.cluster)] = one.value
        return labels

    @property
    def png_colours(self) -> np.ndarray:
        """Colours of all 8-bit label values, uint8 ``(256, 3)``."""
        return colour(np.arange(NO_CLASS + 1), self.colours)


def cluster_naming(k: int) -> Naming:
    """Let label values be the ids of K clusters."""
    return Naming(np.arange(k, dtype=np.uint8 if k <= 256 else np.uint16), palette(k), [])


def class_naming(
    mapping: np.ndarray,
    classes: list[str],
    colours: np.ndarray | None = None,
    splits: Mapping[int, np.ndarray] = MappingProxyType({}),
    corrections: Sequence[Any] = (),
) -> Naming:
    """Let label values be classes.

    Args:
        mapping: ``(K,)``, the class of each cluster; -1 and `NO_CLASS` are none.
        colours: uint8 ``(classes, 3)``; None = those of the report.
        splits, corrections: as in `Naming`.
    """
    values = np.where(mapping < 0, NO_CLASS, mapping).astype(np.uint8)
    shades = class_colours(len(classes))
    if colours is not None:
        shades[:-1] = colours
    return Naming(values, shades, classes, splits, corrections)


def learned_naming(labelled: Mapping[str, Any]) -> Naming:
    """Let label values be the classes that a head learned: its facts ``labelled``."""
    classes, colours = labelled["classes"], labelled["colours"]
    given = None if colours is None else np.array(colours, np.uint8)
    return class_naming(np.arange(len(classes)), classes, given)

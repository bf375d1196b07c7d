"""What the values of label maps mean, and how they are drawn over photos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from click.core import ParameterSource

from cache import exports, predictions
from cache import results as store
from cache.names import NO_CLASS, PREDICTOR, Names, read_names
from cache.store.artefact import fingerprint
from cache.store.errors import InputError
from pipeline.maps.named import named, region_pixels
from stages.colours import class_colours, colour, overlay, palette

OPACITY = 0.6
NEARLY_ALL = 0.95  # of a photo: what one merged segment should not cover


class Naming(NamedTuple):
    """What the label maps hold: ``values[cluster]``, and uint8 ``(n, 3)`` colours by value.

    Where a person gave ``names``, parts of clusters and single regions may have others.
    """

    values: np.ndarray
    colours: np.ndarray
    classes: list[str]
    names: Names | None = None

    @property
    def mark(self) -> str:
        """Fingerprint of all that gives label values."""
        if self.names is None:
            return fingerprint(self.values.tolist())
        parts = {k: values.tolist() for k, values in self.names.by_rival.items()}
        regions = [
            (one.sha256, one.cluster, one.value, one.cells.tolist())
            for one in self.names.corrections
        ]
        return fingerprint(self.values.tolist(), parts, regions)

    def labels(
        self, ids: np.ndarray, seconds: np.ndarray | None, sha256: Callable[[], str]
    ) -> np.ndarray:
        """The label map of a photo.

        Args:
            ids: clusters ``(H, W)``.
            seconds: ``(h, w)``, those that came second at the patch grid.
            sha256: gives that of the photo's file, by which corrections know it.
        """
        if self.names is None:
            return self.values[ids]
        labels = named(ids, seconds, self.values, self.names.by_rival)
        for one in self.names.corrections_of(sha256()) if self.names.corrections else []:
            labels[region_pixels(one.cells, ids, one.cluster)] = one.value
        return labels


def cluster_names(k: int) -> Naming:
    """Label values are the ids of the K clusters, with the report's colours."""
    values = np.arange(k, dtype=np.uint8 if k <= 256 else np.uint16)
    return Naming(values, palette(k), [])


def class_names(mapping: np.ndarray, classes: list[str]) -> Naming:
    """Label values are the indices of the clusters' classes ``(K,)``, with the report's colours."""
    values = np.where(mapping < 0, NO_CLASS, mapping).astype(np.uint8)
    return Naming(values, class_colours(len(classes)), classes)


def given_names(names: Names) -> Naming:
    """Label values are the indices of the names that a person gave, with the atlas's colours."""
    colours = class_colours(len(names.classes))
    if names.colours is not None:
        colours[:-1] = names.colours
    return Naming(names.values, colours, names.classes, names)


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


def write_map(
    out: str | Path, name: str, image: np.ndarray, labels: np.ndarray, naming: Naming
) -> np.ndarray:
    """Write the label map of a photo and its overlay, both of the photo's size.

    Args:
        image: uint8 ``(H, W, 3)``.
        labels: ``(H, W)`` of `Naming.values`.

    Returns:
        int64 ``(classes + 1,)``: pixels of every class and, last, of none.
    """
    n = len(naming.classes)
    picture = overlay(image, labels, naming.colours, OPACITY)
    predictions.write_prediction(out, name, labels, png_colours(naming), picture)
    return np.bincount(np.minimum(labels, n).ravel(), minlength=n + 1)


def check_export(out: str, export: str | None, naming: Naming) -> None:
    """Raise InputError where a data set is wanted that cannot be."""
    if export and (not naming.classes or export == out):
        raise InputError(
            f"a data set needs classes (--names or --mapping) and a folder other than --out, found "
            f"{len(naming.classes)} classes and {export}: correct --export."
        )


def open_exports(formats: Sequence[str], out: str | Path, naming: Naming) -> list[exports.Writer]:
    """Open the files for other tools, of names of `exports.FORMATS`; they need classes."""
    if formats and not naming.classes:
        raise InputError(
            f"--format {formats[0]} needs classes, found cluster ids: give --names or --mapping."
        )
    chosen = dict.fromkeys(formats)
    return [exports.FORMATS[name](out, naming.classes, naming.colours) for name in chosen]


def png_colours(naming: Naming) -> np.ndarray:
    """uint8 ``(256, 3)`` by label value, where 255 may mean "no class"."""
    return colour(np.arange(NO_CLASS + 1), naming.colours)


def covers_nearly_all(clusters: np.ndarray) -> bool:
    """Whether one segment covers nearly all of a label map."""
    return bool(np.bincount(clusters.ravel()).max() > NEARLY_ALL * clusters.size)


def warn_of_merging(flat: Sequence[str], photos: int, merge_to: int) -> None:
    """Say that merging has left one segment in photos, and what to choose instead."""
    some = ", ".join(flat[:3]) + ", ..." * (len(flat) > 3)
    click.echo(
        f"Warning: in {len(flat)} of {photos} photos ({some}) one segment covers more than "
        f"{NEARLY_ALL:.0%}: --merge-to {merge_to} may merge too much. Try --merge-to "
        f"{2 * merge_to}, or leave it out and name the clusters in the atlas (--names).",
        err=True,
    )


def find_mapping(path: str, head: str) -> store.ClassMapping | None:
    """The mapping from clusters to classes, None for cluster ids.

    Raises:
        InputError: the mapping that was asked for is missing or belongs to another head. The
            default one may be so: that is said and cluster ids are written.
    """
    if path == "none":
        return None
    try:
        mapping = next(iter(store.read_mappings(path).values()))
        if mapping.head != head:
            raise InputError(
                f"{path} must belong to this head ({head}), found the mapping of {mapping.head}: "
                "run `eigenseg eval` (or `dvc repro eval`) with this head."
            )
        if mapping.fitted_on is None:
            raise InputError(f"{path} must name classes, found none: there were no labels.")
    except InputError as error:
        given = click.get_current_context().get_parameter_source("mapping")
        if given is not ParameterSource.DEFAULT:
            raise InputError(f"{error} `--mapping none` writes cluster ids.") from error
        click.echo(f"{error} Cluster ids are written instead of classes.", err=True)
        return None
    return mapping

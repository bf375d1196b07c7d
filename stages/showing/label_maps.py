"""Label maps of photos as files: index PNG, overlay, legend, areas; files for other tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from cache import exports, predictions
from cache.store.artefact import fingerprint
from cache.store.errors import InputError
from pipeline.drawing.colours import OPACITY, overlay
from pipeline.drawing.legend import legend
from pipeline.drawing.naming import Naming
from stages.showing.letters import tell_unshown

NO_CLASS = "no class"
NEARLY_ALL = 0.95  # of a photo: what one merged segment should not cover


def write_legend(out: str | Path, naming: Naming) -> None:
    """Write classes.txt and legend.png."""
    predictions.write_class_list(out, naming.classes)
    tell_unshown(naming.classes)
    predictions.write_legend(out, legend([*naming.classes, NO_CLASS], naming.colours))


def write_label_map(
    out: str | Path, name: str, image: np.ndarray, labels: np.ndarray, naming: Naming
) -> np.ndarray:
    """Write the label map of a photo and its overlay, both of the photo's size.

    Args:
        image: uint8 ``(H, W, 3)``.
        labels: ``(H, W)`` of `Naming.values`.

    Returns:
        int64 ``(classes + 1,)``: pixels of every class and, last, of none.
    """
    picture = overlay(image, labels, naming.colours, OPACITY)
    predictions.write_prediction(out, name, labels, naming.png_colours, picture)
    n = len(naming.classes)
    return np.bincount(np.minimum(labels, n).ravel(), minlength=n + 1)


def naming_fingerprint(naming: Naming) -> str:
    """Make a fingerprint of all that gives label values."""
    splits = {k: values.tolist() for k, values in naming.splits.items()}
    regions = [
        (one.sha256, one.cluster, one.value, one.cells.tolist()) for one in naming.corrections
    ]
    more = (splits, regions) if splits or regions else ()
    return fingerprint(naming.values.tolist(), *more)


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


def covers_nearly_all(clusters: np.ndarray) -> bool:
    """Tell whether one segment covers nearly all of a label map."""
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

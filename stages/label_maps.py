"""Label maps of photos as files: index PNG, overlay with a legend, areas."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cache import predictions
from pipeline.drawing.colours import OPACITY, overlay
from pipeline.drawing.legend import legend, legend_below
from pipeline.drawing.naming import Naming
from stages.letters import tell_unshown

NO_CLASS = "no class"


def write_legend(out: str | Path, naming: Naming) -> None:
    """Write classes.txt and legend.png."""
    predictions.write_class_list(out, naming.classes)
    tell_unshown(naming.classes)
    predictions.write_legend(out, legend([*naming.classes, NO_CLASS], naming.colours))


def write_label_map(
    out: str | Path,
    name: str,
    image: np.ndarray,
    labels: np.ndarray,
    naming: Naming,
    *,
    with_legend: bool = False,
) -> None:
    """Write the label map of a photo and its overlay.

    Args:
        image: uint8 ``(H, W, 3)``.
        labels: ``(H, W)``, label values.
        with_legend: put the classes that are there below the overlay.
    """
    picture = overlay(image, labels, naming.colours, OPACITY)
    if with_legend:
        present = np.flatnonzero(areas_of(labels, naming))
        words = [*naming.classes, NO_CLASS]
        picture = legend_below(picture, [words[i] for i in present], naming.colours[present])
    predictions.write_prediction(out, name, labels, naming.png_colours, picture)


def areas_of(labels: np.ndarray, naming: Naming) -> np.ndarray:
    """Count the pixels of every class and, last, of none: int64 ``(classes + 1,)``."""
    n = len(naming.classes)
    return np.bincount(np.minimum(labels, n).ravel(), minlength=n + 1)

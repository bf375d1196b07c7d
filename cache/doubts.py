"""Plausibility of the labels of a data set, from counts of their pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cache.layouts import IGNORE
from cache.walk import some

_MOST = 0.5  # share of ignored pixels


class Doubts(NamedTuple):
    """Faults that cannot be meant, and doubts about what may not be."""

    faults: list[str]
    notes: list[str]


def doubts(
    counts: Mapping[str, np.ndarray], scored: str, classes: Sequence[str], mappable: bool
) -> Doubts:
    """Look at the labels of all splits together.

    Args:
        counts: pixels of each value, int64 ``(256,)``, by labelled split.
        scored: the split that scores are of.
        classes: names by index.
        mappable: whether `datasets.<name>.values` may say what values mean.
    """
    if not counts:
        return Doubts([], [])
    faults, notes = [], []
    everything, hint = sum(counts.values(), np.zeros(256, np.int64)), ""
    absent = [index for index in range(len(classes)) if not everything[index]]
    if mappable and absent and everything[IGNORE] and everything[:IGNORE].any():
        hint = (
            " 255 is ignored: in masks of 0 and 255, or where 255 is a class, say which one, as in "
            f"`datasets.<name>.values: {{255: {absent[0]}}}`."
        )
    for split, pixels in counts.items():
        labelled = pixels[:IGNORE].nonzero()[0].tolist()
        if not labelled:
            faults.append(
                f"the labels of split {split} must name classes, found 255 (ignored) on every "
                f"pixel: nothing can be scored.{hint} Correct them, or remove their folder."
            )
        elif len(labelled) == 1 and len(classes) > 1 and split == scored:
            faults.append(
                f"the labels of split {split} must hold two classes at least, found {labelled[0]} "
                f"({classes[labelled[0]]}) alone: whatever is found scores 100.{hint} Correct "
                "them or classes.txt, or remove the folder of labels."
            )
        elif (share := pixels[IGNORE] / pixels.sum()) > _MOST:
            notes.append(
                f"the labels of split {split} are 255 (ignored) on {share:.0%} of pixels.{hint}"
            )
    if absent and not faults:
        names = some([f"{i} ({classes[i]})" for i in absent])
        notes.append(f"no label holds {'class' if len(absent) == 1 else 'classes'} {names}.{hint}")
    if len(classes) == 1:
        notes.append("with one class whatever is found scores 100")
    return Doubts(faults, notes)

"""Files of names: what a person calls the clusters of a head, as the atlas saves them.

JSON: ``format``, ``head`` (its fingerprint), ``predictor``, ``classes`` (names by index) and
``clusters``: for each cluster the index of its class, or -1 = not named yet, -2 = mixed (several
things in one cluster), -3 = ignored. All three have no class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cache.store.artefact import read_json
from cache.store.errors import InputError

FORMAT = 1
PREDICTOR = "ours"  # whose clusters are named
NO_CLASS = 255  # label value of pixels without a class
_LEAST = -3  # the marks of clusters without a class
_WAY_OUT = "open results/report/clusters.html, name the clusters and save the file again."


class Names(NamedTuple):
    """Class names by index, and uint8 ``(K,)`` the label value of each cluster, 255 = none."""

    classes: list[str]
    values: np.ndarray


def read_names(path: str | Path, head: str, clusters: int) -> Names:
    """Read a file of names of this head.

    Args:
        head: fingerprint of the head whose clusters are to be named.
        clusters: K.

    Raises:
        InputError: it is missing, no file of names, names nothing, or belongs to another head.
    """
    value = read_json(path, _WAY_OUT)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise InputError(f"{path} is no file of names of format {FORMAT}: {_WAY_OUT}")
    if (value.get("head"), value.get("predictor")) != (head, PREDICTOR):
        raise InputError(
            f"{path} must name the clusters of {PREDICTOR} of this head ({head}), found names for "
            f"{value.get('predictor')} of {value.get('head')}: take the file that was saved for "
            f"this head, or {_WAY_OUT}"
        )
    classes = _classes(path, value.get("classes"))
    ids = value.get("clusters")
    listed = ids if isinstance(ids, list) and all(type(one) is int for one in ids) else []
    if len(listed) != clusters or not all(_LEAST <= one < len(classes) for one in listed):
        raise InputError(
            f"{path} must give each of {clusters} clusters an integer in {_LEAST}.."
            f"{len(classes) - 1}, found {str(ids)[:60]}: {_WAY_OUT}"
        )
    values = np.array(listed, dtype=np.int64)
    return Names(classes, np.where(values < 0, NO_CLASS, values).astype(np.uint8))


def _classes(path: str | Path, classes: Any) -> list[str]:
    named = isinstance(classes, list) and all(
        isinstance(name, str) and name.strip() == name and name.isprintable() and name
        for name in classes
    )
    if not named or not 0 < len(classes) <= NO_CLASS or len(set(classes)) < len(classes):
        raise InputError(
            f"{path} must hold 1 to {NO_CLASS} class names, each once and on one line, found "
            f"{str(classes)[:60]}: {_WAY_OUT}"
        )
    return classes

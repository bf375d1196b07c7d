"""Reading what clusters are called, for a given head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cache.names import PREDICTOR, read_names
from cache.results import read_mappings
from cache.segments import PREDICTORS, SEMI_SUPERVISED
from cache.store.artefact import read_json
from cache.store.errors import InputError
from pipeline.drawing.naming import Naming, class_naming


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
        names = read_names(path, head, k)
        return class_naming(*names.naming)
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


def choose_predictor(manifest: dict[str, Any], wanted: str | None, *, named: bool) -> str:
    """Return the wanted predictor, or that which knows most of a head.

    Args:
        named: clusters of `ours` have names.

    Raises:
        InputError: the head has no such predictor.
    """
    learned = manifest["labelled"] is not None
    if wanted is None:
        return SEMI_SUPERVISED if learned and not named else PREDICTOR
    if wanted == SEMI_SUPERVISED and not learned:
        raise InputError(
            "the head has learned no labels, so it has no predictor semi_supervised: set "
            "train.labelled and run `eigenseg train`, or choose another predictor."
        )
    if wanted not in (*PREDICTORS, SEMI_SUPERVISED):
        names = ", ".join((*PREDICTORS, SEMI_SUPERVISED))
        raise InputError(f"the predictor must be one of {names}, found {wanted!r}.")
    return wanted


def segments_of(manifest: dict[str, Any], merge_to: int | None, predictor: str) -> int:
    """Return the number of segments that the clusters of a head are merged to, or of classes."""
    if predictor == SEMI_SUPERVISED:
        return len(manifest["labelled"]["classes"])
    k = manifest["head"]["clusters"]
    if merge_to is not None and merge_to > k:
        raise InputError(f"--merge-to must not exceed the {k} clusters of the head: lower it.")
    return merge_to or k

"""The results folder: metrics, counts and mappings as JSON, per-class IoUs and curves as CSV.

People and DVC read metrics.json, miou.json, accuracy.json, per_class.csv and curve.csv, so their
digests stand elsewhere: in counts.json, which eval writes last, and in the head that the curve is
of.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cache.index import ImageRow
from cache.store.artefact import (
    file_hash,
    fingerprint,
    read_json,
    read_manifest,
    sealed,
    write_output,
)
from cache.store.errors import InputError
from cache.store.tables import encode

_EVAL = "run `eigenseg eval` (or `dvc repro eval`) first."
_TRAIN = "run `eigenseg train` and `eigenseg segment` (or `dvc repro segment`) first."

MEASURES = ("miou", "accuracy")  # one small file each: the metrics that DVC shows
ORIGINS = ("train", "different", "typical", "random", "oracle")  # of mappings, the best first

Counts = dict[str, dict[str, dict[str, np.ndarray]]]
"""By variant, predictor and split: int64 ``(K, C)``, pixels by cluster and class."""


class ClassMapping(NamedTuple):
    """Classes of clusters.

    Attributes:
        head: fingerprint of the head whose clusters these are.
        fitted_on: the split whose labels the mappings were fitted on; None without labels.
        classes: class names by index.
        clusters: by predictor and matching, int64 ``(K,)`` class indices, -1 for unmatched.
    """

    head: str
    fitted_on: str | None
    classes: list[str]
    clusters: dict[str, dict[str, np.ndarray]]


class ClassScore(NamedTuple):
    """The IoU of one class in percent; NaN where the scored split has no pixel of it."""

    dataset: str
    variant: str
    predictor: str
    matching: str
    mapping: str
    name: str
    iou: float


class Evaluation(NamedTuple):
    """Evaluation of one data set.

    Attributes:
        metrics: ``{variant: {predictor: {"k", "clusters_used", matching: {"oracle"|"train":
            scores}}}}``; a variant is a protocol, or one and a CRF.
        classes: class names by index; none without labels.
        counts: every score can be worked out from them alone; empty without labels.
        mapping: what clusters are called.
        per_class: IoUs; as they are for people, they are not read back.
    """

    metrics: dict[str, dict[str, Any]]
    classes: Sequence[str]
    counts: Counts
    mapping: ClassMapping
    per_class: Sequence[ClassScore] = ()


def made_from(
    segments: Mapping[str, Any],
    images: Sequence[ImageRow],
    classes: Mapping[str, Sequence[str]],
    labels: Mapping[int, Sequence[object]],
    train: str,
    evaluated: Sequence[tuple[str, str]],
    choices: Mapping[str, Any],
) -> dict[str, Any]:
    """Collect what an evaluation is of: fingerprints of label maps, images and labels, the splits.

    Args:
        segments: manifest of the label maps.
        classes: by data set.
        evaluated: data sets and their splits.
        labels: by the id of their image.
        choices: JSON-able, what mappings are fitted on.
    """
    return {
        "segments": segments["fingerprint"],
        "images": fingerprint(images),
        "labels": fingerprint(dict(classes), list(labels.values())),
        "train": train,
        "eval": [list(item) for item in evaluated],
        **choices,
    }


def write_evaluation(
    folder: str | Path, found: Mapping[str, Evaluation], made_from: Mapping[str, Any]
) -> None:
    """Write metrics, their summaries, mappings, IoUs and, last, counts.json with the digests.

    Args:
        found: by data set.
        made_from: fingerprints and choices by name, JSON-able.
    """
    folder = Path(folder)
    metrics = {dataset: one.metrics for dataset, one in found.items()}
    mappings = {dataset: one.mapping for dataset, one in found.items()}
    per_class = [row for one in found.values() for row in one.per_class]
    digests = {
        "metrics.json": _write_json(folder / "metrics.json", metrics),
        "mapping.json": write_mappings(folder / "mapping.json", mappings),
        "per_class.csv": _write_per_class(folder / "per_class.csv", per_class),
    }
    for measure in MEASURES:
        _write_json(folder / f"{measure}.json", summary(metrics, measure))
    sets = {
        dataset: {
            "classes": list(one.classes),
            "counts": {variant: _lists(counts) for variant, counts in one.counts.items()},
        }
        for dataset, one in found.items()
    }
    facts = {"made_from": dict(made_from), "sha256": digests}
    _write_json(folder / "counts.json", sealed({"datasets": sets, **facts}))


def summary(metrics: Mapping[str, Mapping[str, Any]], measure: str) -> dict[str, dict[str, float]]:
    """Sum up the metrics in a number for each data set and predictor: what DVC shows.

    It is that of the first protocol and matching (majority_iou), with a mapping that has not seen
    the labels that are scored, or with an oracle where there is no other.
    """
    found: dict[str, dict[str, float]] = {}
    for dataset, variants in metrics.items():
        first: Mapping[str, Mapping[str, Any]] = next(iter(variants.values()))
        scored = {
            name: next(value for value in entry.values() if isinstance(value, Mapping))
            for name, entry in first.items()
            if any(isinstance(value, Mapping) for value in entry.values())
        }
        found[dataset] = {
            name: round(next(by[o] for o in (*ORIGINS, *by) if o in by)[measure], 2)
            for name, by in scored.items()
        }
    return found


def _lists(arrays: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, list]]:
    return {
        name: {key: array.tolist() for key, array in inner.items()}
        for name, inner in arrays.items()
    }


def _arrays(lists: Mapping[str, Mapping[str, list]]) -> dict[str, dict[str, np.ndarray]]:
    return {
        name: {key: np.array(values, dtype=np.int64) for key, values in inner.items()}
        for name, inner in lists.items()
    }


def read_evaluation(folder: str | Path, made_from: Mapping[str, Any]) -> dict[str, Evaluation]:
    """Read back what `write_evaluation` wrote of these things, by data set.

    Raises:
        InputError: a file is missing, not what was written, or of other things.
    """
    folder = Path(folder)
    value = read_manifest(folder / "counts.json", _EVAL)
    if other := [n for n in made_from if value.get("made_from", {}).get(n) != made_from[n]]:
        raise InputError(
            f"{folder}/counts.json must be of the same {', '.join(other)}, found the counts of "
            f"another: {_EVAL}"
        )
    for name, digest in value["sha256"].items():
        check_file(folder / name, digest, f"what is in {folder}/counts.json", _EVAL)
    metrics = read_json(folder / "metrics.json", _EVAL)
    mappings = read_mappings(folder / "mapping.json")
    found = {}
    for dataset, one in value["datasets"].items():
        counts = {variant: _arrays(tables) for variant, tables in one["counts"].items()}
        found[dataset] = Evaluation(metrics[dataset], one["classes"], counts, mappings[dataset])
    return found


def check_file(path: str | Path, sha256: str, other: str, way_out: str) -> None:
    """Raise InputError unless the file has this SHA-256, and so belongs to the ``other`` thing."""
    try:
        found = file_hash(path)
    except OSError as error:
        raise InputError(f"{path} is missing: {way_out}") from error
    if found != sha256:
        raise InputError(f"{path} does not belong to {other} (its SHA-256 differs): {way_out}")


def _write_json(path: Path, value: Any) -> str:
    """Indented JSON with lists of numbers on one line: readable, and diffs show clusters."""
    text = json.dumps(value, indent=1, allow_nan=False)
    text = re.sub(r"\[\n[\d\s,-]*\]", lambda match: "".join(match[0].split()), text)
    return write_output(path, text + "\n")


def write_mappings(path: str | Path, mappings: Mapping[str, ClassMapping]) -> str:
    """Write the cluster-to-class mappings by data set; new images' clusters get names by them."""
    sets = {
        dataset: {**mapping._asdict(), "clusters": _lists(mapping.clusters)}
        for dataset, mapping in mappings.items()
    }
    return _write_json(Path(path), sealed({"datasets": sets}))


def read_mappings(path: str | Path) -> dict[str, ClassMapping]:
    """Read back what `write_mappings` wrote, at least one.

    Raises:
        InputError: the file is missing, not what was written, or of another kind.
    """
    value = read_manifest(path, _EVAL)
    try:
        found = {
            dataset: ClassMapping(
                one["head"], one["fitted_on"], one["classes"], _arrays(one["clusters"])
            )
            for dataset, one in value["datasets"].items()
        }
        if not found:
            raise ValueError("no data set")
        return found
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no mapping from clusters to classes: {_EVAL}") from error


def _write_per_class(path: Path, rows: Iterable[ClassScore]) -> str:
    """Write a CSV row per data set, variant, predictor, matching, mapping and class.

    An absent class has no IoU.
    """
    header = ("dataset", "variant", "predictor", "matching", "mapping", "class", "iou")
    table = [(*row[:6], "" if math.isnan(row.iou) else row.iou) for row in rows]
    return write_output(path, encode(header, table))


def read_rows(path: str | Path, way_out: str) -> list[dict[str, str]]:
    """The rows of a CSV, by the names in its first line.

    Raises:
        InputError: the file is missing or no CSV; the text ends with ``way_out``.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}): {way_out}") from error


def write_curve(path: str | Path, rows: Sequence[Mapping[str, float]]) -> str:
    """Write the training curve as CSV: a row per step, columns as in the first row; its SHA-256."""
    return write_output(path, encode(list(rows[0]), [list(row.values()) for row in rows]))


def read_curve(path: str | Path, sha256: str) -> dict[str, np.ndarray]:
    """Read the training curve of the head whose segments name this SHA-256.

    Returns:
        One float64 ``(steps,)`` array per column: step, loss, trace, ...

    Raises:
        InputError: the file is missing or another.
    """
    check_file(path, sha256, "the head whose label maps these are", _TRAIN)
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    return dict(zip(header, np.array(rows, dtype=np.float64).T, strict=True))

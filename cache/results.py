"""The results folder: metrics, counts and mappings as JSON, per-class IoUs and curves as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cache.store.artefact import read_json, write_text
from cache.store.errors import InputError

_EVAL = "run `eigenseg eval` (or `dvc repro eval`) first."
_TRAIN = "run `eigenseg train` (or `dvc repro train`) first."

Counts = dict[str, dict[str, np.ndarray]]
"""Counts by predictor and split: int64 ``(K, C)`` pixels by cluster and class."""


class ClassMapping(NamedTuple):
    """Which class each cluster is called.

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

    predictor: str
    matching: str
    mapping: str
    name: str
    iou: float


def _write_json(path: str | Path, value: Any) -> None:
    """Indented JSON with lists of numbers on one line: readable, and diffs show clusters."""
    text = json.dumps(value, indent=1, allow_nan=False)
    text = re.sub(r"\[\n[\d\s,-]*\]", lambda match: "".join(match[0].split()), text)
    write_text(path, text + "\n")


def write_metrics(path: str | Path, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Write ``{predictor: {"k", "clusters_used", matching: {"oracle"|"train": scores}}}``."""
    _write_json(path, metrics)


def read_metrics(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read back what `write_metrics` wrote."""
    return read_json(path, _EVAL)


def write_counts(path: str | Path, classes: Sequence[str], counts: Counts) -> None:
    """Write the classes and all counts: every score can be worked out from this file alone."""
    tables = {name: {s: t.tolist() for s, t in splits.items()} for name, splits in counts.items()}
    _write_json(path, {"classes": list(classes), "counts": tables})


def read_counts(path: str | Path) -> tuple[list[str], Counts]:
    """Read back what `write_counts` wrote: class names and counts, both empty without labels."""
    value = read_json(path, _EVAL)
    counts = {
        name: {split: np.array(table, dtype=np.int64) for split, table in splits.items()}
        for name, splits in value["counts"].items()
    }
    return value["classes"], counts


def write_mapping(path: str | Path, mapping: ClassMapping) -> None:
    """Write the cluster-to-class mappings, by which new images' clusters get a name."""
    clusters = {
        name: {matching: classes.tolist() for matching, classes in matchings.items()}
        for name, matchings in mapping.clusters.items()
    }
    _write_json(path, mapping._replace(clusters=clusters)._asdict())


def read_mapping(path: str | Path) -> ClassMapping:
    """Read back what `write_mapping` wrote.

    Raises:
        InputError: the file is missing or of another kind.
    """
    value = read_json(path, _EVAL)
    try:
        clusters = {
            name: {matching: np.array(c, dtype=np.int64) for matching, c in matchings.items()}
            for name, matchings in value["clusters"].items()
        }
        return ClassMapping(value["head"], value["fitted_on"], value["classes"], clusters)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no mapping from clusters to classes: {_EVAL}") from error


def write_per_class(path: str | Path, rows: Iterable[ClassScore]) -> None:
    """Write one CSV row per predictor, matching, mapping and class; an absent class has no IoU."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("predictor", "matching", "mapping", "class", "iou"))
    writer.writerows((*row[:4], "" if math.isnan(row.iou) else row.iou) for row in rows)
    write_text(path, buffer.getvalue())


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


def write_curve(path: str | Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write the training curve as CSV: a row per step, columns as in the first row."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def read_curve(path: str | Path) -> dict[str, np.ndarray]:
    """Read the training curve.

    Returns:
        One float64 ``(steps,)`` array per column: step, loss, trace, ...

    Raises:
        InputError: the file is missing or a value is no number.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file))
        table = np.array(rows, dtype=np.float64).reshape(len(rows), len(header))
    except FileNotFoundError as error:
        raise InputError(f"the training curve {path} is missing: {_TRAIN}") from error
    except ValueError as error:
        raise InputError(f"{path} is no table of numbers ({error}): {_TRAIN}") from error
    return dict(zip(header, table.T, strict=True))

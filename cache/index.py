"""The index of a data set: one CSV row per image, in a fixed order."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cache.store.artefact import write_text
from cache.store.errors import InputError


class ImageRow(NamedTuple):
    """One image: its id is its row number; height and width are pixels after EXIF rotation."""

    id: int
    split: str
    stem: str
    path: str
    height: int
    width: int
    sha256: str


def write_index(path: str | Path, rows: Sequence[ImageRow]) -> None:
    """Write the rows as CSV with a header, atomically."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(ImageRow._fields)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def read_index(path: str | Path) -> list[ImageRow]:
    """Read the rows back; position in the list equals the id.

    Raises:
        InputError: the file is missing or was not written by the prepare stage.
    """
    way_out = "run `eigenseg prepare` (or `dvc repro prepare`) first."
    try:
        with open(path, newline="", encoding="utf-8") as file:
            table = list(csv.reader(file))
    except FileNotFoundError as error:
        raise InputError(f"the index {path} is missing: {way_out}") from error
    if not table or tuple(table[0]) != ImageRow._fields:
        raise InputError(f"{path} is no index of images (its header differs): {way_out}")
    rows = [ImageRow(int(i), s, n, p, int(h), int(w), x) for i, s, n, p, h, w, x in table[1:]]
    if [row.id for row in rows] != list(range(len(rows))):
        raise InputError(f"{path} has ids out of order: {way_out}")
    return rows

"""The index of a data set: one CSV row per image, in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cache.store.artefact import fingerprint
from cache.store.tables import read_table, write_table


class ImageRow(NamedTuple):
    """One image: its id is its row number; height and width are pixels after EXIF rotation.

    White is the value that becomes 255, None for a file of 8 bits a channel.
    """

    id: int
    split: str
    stem: str
    path: str
    height: int
    width: int
    sha256: str
    white: float | None = None


def write_index(path: str | Path, rows: Sequence[ImageRow]) -> None:
    """Write the rows as CSV with a header and a digest, atomically."""
    write_table(path, ImageRow._fields, rows, "")  # None becomes an empty cell


def read_index(path: str | Path) -> list[ImageRow]:
    """Read the rows back; position in the list equals the id.

    Raises:
        InputError: the file is missing or not as the prepare stage wrote it.
    """
    way_out = "run `eigenseg prepare` (or `dvc repro prepare`) first."
    table, _ = read_table(path, ImageRow._fields, way_out)
    return [
        ImageRow(int(i), split, name, file, int(h), int(w), digest, float(white) if white else None)
        for i, split, name, file, h, w, digest, white in table
    ]


def images_fingerprint(rows: Sequence[ImageRow]) -> str:
    """Make a fingerprint of the images in their order, by content: names do not count."""
    return fingerprint([(row.split, row.height, row.width, row.sha256, row.white) for row in rows])

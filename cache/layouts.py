"""Layouts of benchmarks on disk: places of a split's images and labels, meaning of label values.

The meaning of raw label values is declared in ``classes/<table>.tsv``: a row for every value that
may occur, a column for each number of classes, cells ``<index> <name>``; an empty cell is ignored.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cache.store.errors import InputError

IGNORE = 255
TABLES = Path(__file__).parent / "classes"


class Layout(NamedTuple):
    """Places of the files of a data set, below its root.

    Attributes:
        images, labels: folders of a split, ``{split}`` being its name.
        ending: what the names of images end with, and their stems do without; "" is any suffix.
        endings: what the names of labels end with in place of that, and the table of their values
            ("" where classes.txt names the values); the first that is there is read.
        listing: file with the stems of a split; "" where all images of the folder are the split.
        classes: the numbers of classes that its labels can be read with.
    """

    images: str
    labels: str
    ending: str
    endings: dict[str, str]
    listing: str
    classes: tuple[int, ...]


LAYOUTS = {
    "folder": Layout("images/{split}", "labels/{split}", "", {".png": ""}, "", ()),
    "images": Layout("{split}", "labels/{split}", "", {}, "", ()),
    "cityscapes": Layout(
        "leftImg8bit/{split}", "gtFine/{split}", "_leftImg8bit.png",
        {
            "_gtFine_labelIds.png": "cityscapes",
            "_gtFine_labelTrainIds.png": "cityscapes_train_ids",
        },
        "", (27, 19),
    ),
    "ade20k": Layout(
        "images/{split}", "annotations/{split}", ".jpg", {".png": "ade20k"}, "", (150,)
    ),
    "coco_stuff": Layout(
        "{split}", "annotations/{split}", ".jpg", {".png": "coco_stuff"}, "", (27, 171)
    ),
    "pascal_context": Layout(
        "JPEGImages", "SegmentationClassContext", ".jpg", {".png": "pascal_context"},
        "ImageSets/SegmentationContext/{split}.txt", (59, 60),
    ),
}  # fmt: skip


def find_layout(name: str, classes: int | None) -> Layout:
    """Find the layout of that name, whose labels can be read with so many classes.

    Raises:
        InputError: they cannot; None is for layouts whose classes.txt names them.
    """
    layout = LAYOUTS[name]
    if classes not in (layout.classes or (None,)):
        possible = " or ".join(map(str, layout.classes)) or "null (classes.txt names them)"
        raise InputError(
            f"the classes of format {name} must be {possible}, found {classes}: correct "
            "`datasets.<name>.classes`"
        )
    return layout


class ValueTable(NamedTuple):
    """Meaning of raw label values.

    Attributes:
        classes: uint8 ``(256,)``, the class of each value, 255 = ignore.
        known: bool ``(256,)``, whether a value may occur.
        names: of the classes.
    """

    classes: np.ndarray
    known: np.ndarray
    names: list[str]


def has_classes(table: str, number: int) -> bool:
    """Tell whether the table has a column for so many classes."""
    with open(TABLES / f"{table}.tsv", encoding="utf-8") as file:
        return str(number) in file.readline().split()


@cache
def value_table(table: str, number: int) -> ValueTable:
    """The table of raw label values, read with so many classes; 255 is ignored everywhere."""
    classes, known = np.full(256, IGNORE, np.uint8), np.zeros(256, bool)
    known[IGNORE] = True
    names: dict[int, str] = {}
    with open(TABLES / f"{table}.tsv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            value = int(row["value"])
            known[value] = True
            if row[str(number)]:
                index, name = row[str(number)].split(" ", 1)
                classes[value], names[int(index)] = int(index), name
    return ValueTable(classes, known, [names[index] for index in range(number)])

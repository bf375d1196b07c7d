"""Pairs of images and labels, by their names alone: no label is opened here."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cache.index import ImageRow
from cache.layouts import Layout, has_classes
from cache.walk import some, walk


class Pairs(NamedTuple):
    """Labels of images.

    Attributes:
        places: the label of an image and the table of its values ("" for none), by the image's id.
        faults: what hinders, such as images without a label.
        notes: what the user should know.
    """

    places: dict[int, tuple[str, str]]
    faults: list[str]
    notes: list[str]


def pair(
    rows: Sequence[ImageRow], folder: Path, layout: Layout, classes: int, *, partial: bool = False
) -> Pairs:
    """Find the labels of the images of one split.

    A label has its image's stem. In the layout `folder`, where these differ in the spelling of
    accents or in case alone, or the suffix is `.PNG`, they belong together all the same.

    Args:
        classes: how many there are.
        partial: some images may lack a label, unless a label fits no image.
    """
    exact = {row.id: _exact(folder, row.stem, layout, classes) for row in rows}
    places = {number: place for number, place in exact.items() if place}
    missing = [row for row in rows if row.id not in places]
    if layout.classes:  # a benchmark has labels of other kinds and splits beside those
        return Pairs(places, _lacking(missing, folder, layout, []), [])
    found, used = walk(folder), {Path(path) for path, _ in places.values()}
    free = {
        path: path.relative_to(folder).as_posix()[: -len(".png")]
        for path in found.files
        if path.suffix.lower() == ".png" and path not in used
    }
    faults: list[str] = []
    for spelling in (_accents, _case):
        by_name: dict[str, list[Path]] = {}
        for path, stem in free.items():
            by_name.setdefault(spelling(stem), []).append(path)
        for row in missing:
            match by_name.get(spelling(row.stem), []):
                case [path] if path in free:
                    places[row.id] = str(path), ""
                    del free[path]
                case [_, _, *_] as several:
                    faults.append(
                        f"an image must have one label, found {some([*map(str, several)])} for "
                        f"{row.path}: remove all but one."
                    )
        missing = [row for row in missing if row.id not in places]
    lacking = _lacking(missing, folder, layout, [*free.values()], found.text)
    strays = [f"{folder}: labels without an image: {some([*free.values()])}"] if free else []
    if partial and lacking and not strays:
        said = f"{folder}: {len(places)} of {len(rows)} images have a label"
        return Pairs(places, list(dict.fromkeys(faults)), [said])
    return Pairs(places, list(dict.fromkeys(faults)) + lacking, [] if lacking else strays)


def _accents(stem: str) -> str:
    return unicodedata.normalize("NFC", stem)


def _case(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()


def _exact(folder: Path, stem: str, layout: Layout, classes: int) -> tuple[str, str] | None:
    for ending, table in layout.endings.items():
        path = folder / f"{stem}{ending}"
        if path.is_file() and (not table or has_classes(table, classes)):
            return str(path), f"{table}:{classes}" if table else ""
    return None


def _lacking(
    missing: Sequence[ImageRow],
    folder: Path,
    layout: Layout,
    strays: Sequence[str],
    passed: str = "",
) -> list[str]:
    if not missing:
        return []
    ending = next(iter(layout.endings), "")
    others = f" Labels that fit no image: {some(strays)}." if strays else ""
    others += f" In {folder} {passed}." if passed else ""
    return [
        f"every image of a labelled split must have a label {folder}/<stem>{ending}, "
        f"{len(missing)} lack theirs: {some([row.stem for row in missing])}.{others} Add or rename "
        "them, or remove the images or the folder of labels."
    ]

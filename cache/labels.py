"""Ground truth: the only module that opens label files. Prepare checks them, eval and report read.

A label is an index PNG: greyscale of 8 bits or 1, or palette, one value per pixel. The value is the
class's index, 255 = ignore, or what a table says: the layout's (`cache.layouts`), or the user's.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from PIL import Image

from cache.doubts import doubts
from cache.images import check_pixels
from cache.index import ImageRow
from cache.layouts import IGNORE, LAYOUTS, Layout, ValueTable, has_classes, value_table
from cache.pairs import pair
from cache.store.artefact import fingerprint
from cache.store.errors import InputError
from cache.store.tables import read_table, write_table
from cache.walk import some

_HEADER = ("kind", "id", "value", "sha256", "table", "dataset")
_MAP = "values"  # the name of tables that the user gives, see `LabelRow`


class LabelRow(NamedTuple):
    """One label: the id of its image, its file, that file's hash, and the table of its values.

    The table is ``<name>:<classes>``, ``values:<value>=<class>,...`` as the user says what values
    mean, or "" where they are the indices of classes.
    """

    image: int
    path: str
    sha256: str
    table: str = ""


def read_label(path: str | Path, sha256: str | None = None, table: str = "") -> np.ndarray:
    """Decode one label file; palette indices and grey values are looked up in the table, if any.

    Args:
        path: an index PNG.
        sha256: the hash that the file had when it was checked; None = any.
        table: see `LabelRow`.

    Returns:
        uint8 ``(height, width)``, 255 = ignore.

    Raises:
        InputError: the file is missing, truncated, no index PNG, or has changed since.
    """
    label = _decode(path, _read_bytes(path), sha256)
    return _values(table).classes[label] if table else label


def _values(table: str) -> ValueTable:
    name, rest = table.split(":", 1)
    return mapped_values(rest) if name == _MAP else value_table(name, int(rest))


@cache
def mapped_values(entries: str) -> ValueTable:
    """The table of values that are classes but for those in ``<value>=<class>,...``."""
    classes = np.arange(256, dtype=np.uint8)
    for value, index in (entry.split("=") for entry in entries.split(",")):
        classes[int(value)] = int(index)
    return ValueTable(classes, np.ones(256, bool), [])


class Checked(NamedTuple):
    """A label file: the SHA-256 of its bytes, and the pixels of each class that is in it."""

    sha256: str
    pixels: dict[str, int]


def check_label(
    path: str | Path, height: int, width: int, n_classes: int, table: str = ""
) -> Checked:
    """Check one label file against its image and the classes, or the table of its values.

    Raises:
        InputError: see `read_label`; or the size is not the image's, or values lie outside the
            classes.
    """
    content = _read_bytes(path)
    label = _decode(path, content)
    if label.shape != (height, width):
        raise InputError(
            f"{path}: a label must have its image's size, {width} x {height} px after EXIF "
            f"rotation, found {label.shape[1]} x {label.shape[0]}. Export the label at the image's "
            "size, nearest neighbour."
        )
    values, counts = np.unique(label, return_counts=True)
    classes = _values(table).classes[values] if table else values
    if table and (wrong := values[~_values(table).known[values]].tolist()):
        raise InputError(
            f"{path}: label values must be those of {table.replace(':', ' with ')} classes, "
            f"found {some(wrong)}. Restore the file, or correct `datasets.<name>.format`."
        )
    if wrong := values[(classes >= n_classes) & (classes != IGNORE)].tolist():
        raise InputError(
            f"{path}: label values must lie in 0..{n_classes - 1} ({n_classes} classes in "
            f"classes.txt) or be {IGNORE} (ignore), found {some(wrong)}. "
            f"{_meant(values.tolist(), n_classes)}"
        )
    pixels = np.bincount(classes, counts, minlength=256).astype(np.int64)
    found = {str(value): int(pixels[value]) for value in np.unique(classes)}
    return Checked(hashlib.sha256(content).hexdigest(), found)


def _meant(values: Sequence[int], n_classes: int) -> str:
    """Explain values that are not the indices of classes."""
    apart = [value for value in values if value != IGNORE]
    if len(values) > n_classes + 1:
        return (
            "Values in between come from resizing or smoothing labels: export them as they are, or "
            "by nearest neighbour; or complete classes.txt."
        )
    in_order = apart if len(apart) == n_classes else values
    example = ", ".join(f"{value}: {i}" for i, value in enumerate(in_order[:n_classes]))
    return (
        f"Say what values mean, such as `datasets.<name>.values: {{{example}}}`, or complete "
        "classes.txt."
    )


def _read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}). Put the label back, then run prepare."
        ) from error


def _decode(path: str | Path, content: bytes, sha256: str | None = None) -> np.ndarray:
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"{path} has changed since it was checked: run prepare again.")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            check_pixels(image)
            image.verify()  # load() alone lets flipped bits pass: it compares no checksums
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            # Pillow stretches greys of fewer bits to 0..255; the header's 25th byte is the depth.
            depth, mode = content[24], image.mode
            label = np.array(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many types
        raise InputError(
            f"{path} cannot be decoded as a PNG ({error}). Replace the file, then run prepare."
        ) from error
    if mode == "1":
        return label.astype(np.uint8)
    if mode != "P" and (mode != "L" or depth != 8):
        raise InputError(
            f"{path}: a label must be an index PNG, 8-bit greyscale (L) or palette (P), found mode "
            f"{mode} of {depth} bits. Convert it so that each pixel's value is its class's index."
        )
    return label


def read_classes(root: str | Path) -> list[str]:
    """The class names in ``<root>/classes.txt``, one a line; line number = index.

    Returns:
        The names; none where there is no such file.

    Raises:
        InputError: it is no text in UTF-8, a line is empty or repeated, or there are more classes
            than 8 bits can index.
    """
    path = Path(root) / "classes.txt"
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be a text in UTF-8 ({error}): save it as UTF-8.") from error
    names = [line.strip() for line in text.rstrip().splitlines()]
    for number, name in enumerate(names, start=1):
        if not name or name in names[: number - 1]:
            raise InputError(
                f"{path}: every line must name one class, once; line {number} is "
                f"{'empty' if not name else f'{name!r} again'}. The line number is the index in "
                "the labels: name the class, don't drop the line."
            )
    if len(names) > IGNORE:
        raise InputError(
            f"{path}: labels of 8 bits have room for {IGNORE} classes (255 = ignore), found "
            f"{len(names)}. Merge classes."
        )
    return names


def classes_of(root: str | Path, layout: Layout, number: int | None) -> list[str]:
    """The class names of a layout read with so many classes, or those in classes.txt."""
    if not layout.classes:
        return read_classes(root)
    table = next(name for name in layout.endings.values() if has_classes(name, number or 0))
    return value_table(table, number or 0).names


def find_labels(
    root: str | Path,
    rows: Sequence[ImageRow],
    classes: Sequence[str],
    track: Callable[[Sequence[ImageRow]], Iterable[ImageRow]] = iter,
    layout: Layout = LAYOUTS["folder"],
    check: Callable[[str, int, int, int, str], Checked] = check_label,
    values: Mapping[int, int] = MappingProxyType({}),
    scored: str = "",
) -> tuple[list[LabelRow], list[str]]:
    """Find and check the labels of the images, such as ``<root>/labels/<split>/<stem>.png``.

    A split without a folder of labels is unlabelled, which is fine. So is a split that is not
    scored where some images lack a label.

    Args:
        track: shows how far it is, while it yields what it is given.
        check: `check_label`, or that with a memory.
        values: classes of values that are no classes' indices.
        scored: the split that scores are of.

    Returns:
        One row per labelled image, in the images' order, and what the user should know.

    Raises:
        InputError: labels without classes.txt; or images of a labelled split without a label,
            labels that `check_label` rejects, and labels that cannot be meant (`cache.doubts`): all
            faults in one error.
    """
    splits = {split: Path(root) / layout.labels.format(split=split) for split in _splits(rows)}
    labelled = {split: folder for split, folder in splits.items() if folder.is_dir()}
    if labelled and not classes:
        raise InputError(
            f"{root} has labels but no classes.txt: write one class name a line (line number = "
            "label value), or remove the labels."
        )
    own = (
        f"{_MAP}:{','.join(f'{value}={index}' for value, index in values.items())}"
        if values
        else ""
    )
    places: dict[int, tuple[str, str]] = {}
    faults, notes = [], []
    for split, folder in labelled.items():
        own_rows = [row for row in rows if row.split == split]
        pairs = pair(own_rows, folder, layout, len(classes), partial=split != scored)
        places |= {i: (path, table or own) for i, (path, table) in pairs.places.items()}
        faults += pairs.faults
        notes += pairs.notes
    labels = []
    counts = {split: np.zeros(256, np.int64) for split in labelled}
    present = [row for row in rows if row.id in places]
    for row in track(present) if present else ():
        path, table = places[row.id]
        try:
            digest, pixels = check(path, row.height, row.width, len(classes), table)
            labels.append(LabelRow(row.id, path, digest, table))
            counts[row.split][[int(value) for value in pixels]] += [*pixels.values()]
        except InputError as error:
            faults.append(str(error))
    if not faults:
        doubted = doubts(counts, scored, classes, mappable=not layout.classes)
        faults += doubted.faults
        notes += doubted.notes
    if faults:
        raise InputError(f"the labels below {root} have faults:\n" + "\n".join(faults))
    return labels, notes


def _splits(rows: Sequence[ImageRow]) -> list[str]:
    return list(dict.fromkeys(row.split for row in rows))


def write_labels(
    path: str | Path,
    classes: Mapping[str, Sequence[str]],
    rows: Sequence[LabelRow],
    images: Sequence[ImageRow],
    names: str = "",
) -> None:
    """Write classes and labels as one CSV, atomically.

    Args:
        classes: the class names by index, of every data set with labels.
        images: the index whose ids the labels name.
        names: SHA-256 of a file of names to learn from; DVC sees by it that the file has changed.
    """
    named = [
        ("class", index, name, "", "", dataset)
        for dataset, names in classes.items()
        for index, name in enumerate(names)
    ]
    learned = [("names", "", "", names, "", "")] if names else []
    table = [*named, *(("image", *row, "") for row in rows), *learned]
    write_table(path, _HEADER, table, fingerprint(images))


def read_labels(
    path: str | Path, images: Sequence[ImageRow]
) -> tuple[dict[str, list[str]], dict[int, LabelRow]]:
    """Read back what `write_labels` wrote.

    Returns:
        The class names by index of every data set with labels, and the labels by image id.

    Raises:
        InputError: the file is missing, not as the prepare stage wrote it, or of other images.
    """
    way_out = "run `eigenseg prepare` (or `dvc repro prepare`) first."
    table, made_from = read_table(path, _HEADER, way_out)
    if made_from != fingerprint(images):
        raise InputError(f"{path} must be of the images in the index, found others: {way_out}")
    classes: dict[str, list[str]] = {}
    for kind, _, value, _, _, dataset in table:
        if kind == "class":
            classes.setdefault(dataset, []).append(value)
    rows = [LabelRow(int(i), *rest) for kind, i, *rest, _ in table if kind == "image"]
    return classes, {row.image: row for row in rows}

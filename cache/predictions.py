"""Folders of label maps: index PNG, overlays on the photos, names, colours, areas; data sets."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cache import exports
from cache.images import shows
from cache.store.artefact import (
    read_json,
    sweep,
    write_bytes,
    write_json,
    write_text,
)
from cache.store.errors import InputError

RECORD = "photos.csv"  # of `cache.claims`
_MANIFEST = "predict.json"
_LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif", ".heic", ".heif", ".hif", ".avif")
_JPEG_SIDE = 65500  # px; JPEG holds no longer side


def outputs(out: str | Path) -> list[Path]:
    """List all that this module writes below ``out``, beside the manifest."""
    names = ("labels", "overlays", "classes.txt", "legend.png", "areas.csv", *exports.FILES, RECORD)
    return [Path(out) / name for name in names]


def samples(out: str | Path) -> list[Path]:
    """List all that this module writes of a data set below ``out``, beside the manifest."""
    return [Path(out) / name for name in ("images", "labels", "classes.txt", RECORD)]


def start(out: str | Path, facts: Mapping[str, Any], owned: Sequence[Path]) -> None:
    """Make the folder ready: further images may join those of the same facts, others may not.

    Args:
        owned: what will be written, `outputs` or `samples` of it.
        facts: what gives the values of the label maps their meaning, JSON-able.

    Raises:
        InputError: the folder holds other label maps; they are left as they are.
    """
    out = Path(out)
    way_out = f"Choose another --out, or remove {out}."
    path = out / _MANIFEST
    if path.is_file():
        former = read_json(path, way_out)
        if former != dict(facts):
            names = former if isinstance(former, dict) else {}
            other = [name for name, value in facts.items() if names.get(name) != value]
            raise InputError(
                f"{out} must hold label maps made in one way, found those of another "
                f"{', '.join(other) or 'version'} ({path}). {way_out}"
            )
    elif present := [str(own) for own in owned if own.exists()]:
        raise InputError(
            f"{out} must be absent or a folder that `predict` has written (with {_MANIFEST}), "
            f"found {', '.join(present)} of something else, which is not overwritten. {way_out}"
        )
    write_json(path, facts)
    sweep(out, "**/*")  # what a kill left


def write_prediction(
    out: str | Path, name: str, labels: np.ndarray, colours: np.ndarray, picture: np.ndarray
) -> None:
    """Write labels/<name>.png and overlays/<name>.jpg (.png where it is too long for JPEG).

    Args:
        name: path below the folders, without suffix.
        labels: uint8 or uint16 ``(H, W)``; of 8 bits it becomes a palette PNG, of 16 a grey one.
        colours: uint8 ``(n <= 256, 3)``, by label; not looked at for 16 bits.
        picture: uint8 ``(H, W, 3)``, the photo with its colours.
    """
    indices = Image.fromarray(labels)
    if labels.dtype == np.uint8:
        indices.putpalette(colours.tobytes())
    write_bytes(Path(out) / "labels" / f"{name}.png", _encode(indices, "PNG"))
    long = max(picture.shape) > _JPEG_SIDE
    content = _encode(Image.fromarray(picture), "PNG" if long else "JPEG")
    write_bytes(Path(out) / "overlays" / f"{name}.{'png' if long else 'jpg'}", content)


def write_legend(out: str | Path, picture: np.ndarray) -> None:
    """Write legend.png, a picture uint8 ``(H, W, 3)``."""
    write_bytes(Path(out) / "legend.png", _encode(Image.fromarray(picture), "PNG"))


def write_areas(out: str | Path, classes: Sequence[str], areas: Mapping[str, np.ndarray]) -> None:
    """Write areas.csv: pixels of every class and, last, of none, a row for each photo.

    Photos of a former table of the same classes stay.

    Args:
        areas: by photo, int64 ``(classes + 1,)``.
    """
    path = Path(out) / "areas.csv"
    header = ["photo", *classes, "no class"]
    rows: dict[str, list[Any]] = {}
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            former = list(csv.reader(file))
        rows = {row[0]: row for row in former[1:]} if former[:1] == [header] else {}
    rows |= {name: [name, *values.tolist()] for name, values in areas.items()}
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(
        [header, *(rows[name] for name in sorted(rows))]
    )
    write_text(path, buffer.getvalue())


def read_label_map(out: str | Path, name: str) -> np.ndarray:
    """Read a label map that `write_prediction` wrote: uint8 or uint16 ``(H, W)``."""
    with Image.open(Path(out) / "labels" / f"{name}.png") as image:
        return np.asarray(image)


def read_areas(out: str | Path) -> dict[str, list[int]]:
    """Read areas.csv: by class and, last, "no class", the pixels in each photo."""
    with open(Path(out) / "areas.csv", newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    return {name: [int(row[i]) for row in rows] for i, name in enumerate(header) if i}


def write_sample(
    out: str | Path,
    split: str,
    name: str,
    photo: Path,
    image: np.ndarray,
    labels: np.ndarray,
    colours: np.ndarray,
) -> None:
    """Add a photo and its label to a data set: images/<split>/<name>.*, labels/<split>/<name>.png.

    The file is copied where any loader sees in it what was segmented. Where an orientation tag
    turns it, or few loaders read it, its pixels are written upright and without tags.

    Args:
        photo: the image's file.
        image: uint8 ``(H, W, 3)``, its pixels, upright.
        labels: uint8 ``(H, W)`` of these pixels.
        colours: uint8 ``(256, 3)``, by label.
    """
    suffix = photo.suffix
    folder = Path(out) / "images" / split
    if not shows(photo, *labels.shape):
        kind = "JPEG" if suffix.lower() in _LOSSY else "PNG"
        content = _encode(Image.fromarray(image), kind)
        write_bytes(folder / f"{name}.{'jpg' if kind == 'JPEG' else 'png'}", content)
    else:
        write_bytes(folder / f"{name}{suffix}", photo.read_bytes())
    indices = Image.fromarray(labels)
    indices.putpalette(colours.tobytes())
    write_bytes(Path(out) / "labels" / split / f"{name}.png", _encode(indices, "PNG"))


def write_class_list(out: str | Path, classes: Sequence[str]) -> None:
    """Write classes.txt, one name a line (line number = label value)."""
    write_text(Path(out) / "classes.txt", "".join(f"{name}\n" for name in classes))


def _encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    choices = {"quality": 92, "subsampling": 0} if kind == "JPEG" else {}
    image.save(buffer, kind, **choices)
    return buffer.getvalue()

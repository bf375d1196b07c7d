"""The gallery of the report: pictures of some images, by class, by predictor, and by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cache import results as store
from cache.index import ImageRow
from cache.names import read_any_names
from cache.predictions import read_areas, read_label_map
from cache.segments import SEMI_SUPERVISED, Segments
from cache.store.artefact import read_json
from cache.store.errors import InputError
from pipeline.drawing.colours import blend, class_colours, colour, eigenfunction_image, palette
from pipeline.drawing.naming import Naming, class_naming, learned_naming
from stages.showing.drawing import Picture, encode
from stages.showing.planned import read_planned

MATCHING = "majority_iou"  # that colours and charts follow
WIDTH = 320  # px of the gallery's pictures
WIDEST = 640  # px that are kept of one, for it opens large
OPACITY = 0.75


class Colours(NamedTuple):
    """uint8 colours: of the classes (the last one means none) and of each predictor's clusters."""

    classes: np.ndarray
    clusters: dict[str, np.ndarray]


class Named(NamedTuple):
    """Label maps by name, as `name` wrote them: their folder, names, and the file's content."""

    folder: Path
    naming: Naming
    file: dict[str, Any]

    def maps(self, row: ImageRow) -> np.ndarray:
        """Classes of one image, uint8 ``(H, W)``."""
        return read_label_map(self.folder, f"{row.split}/{row.stem}")


class Example(NamedTuple):
    """One image of the gallery: label maps, and eigenfunctions in a second row."""

    title: str
    maps: list[Picture]
    eigenfunctions: list[Picture]


def spaced(rows: Sequence[ImageRow], n: int) -> list[ImageRow]:
    """At most ``n`` rows, evenly spaced from the first to the last."""
    places = np.linspace(0, len(rows) - 1, min(n, len(rows))).round().astype(int)
    return [rows[place] for place in places]


def choose_colours(
    mapping: store.ClassMapping, clusters: dict[str, int], learned: Mapping[str, Any] | None
) -> Colours:
    """Clusters get the colours of their classes or, without labels, each its own.

    Args:
        learned: facts of the head about labels; ids of `semi_supervised` are classes by them.
    """
    classes, shades = class_colours(len(mapping.classes)), dict[str, np.ndarray]()
    for name, k in clusters.items():
        if name in mapping.clusters:
            shades[name] = classes[mapping.clusters[name][MATCHING]]
        elif name == SEMI_SUPERVISED and learned:
            shades[name] = learned_naming(learned).colours
        else:
            shades[name] = palette(k)
    return Colours(classes, shades)


def example(
    prefix: str,
    row: ImageRow,
    truth: np.ndarray | None,
    maps: Segments,
    colours: Colours,
    named: Named | None,
) -> Example:
    """The pictures of one image: photo, ground truth, each predictor, the first eigenfunctions.

    Args:
        truth: its classes, uint8 ``(H, W)`` of what is seen of it; None without labels.
    """
    photo, image = read_planned(maps, row), maps.by_content[row.sha256]
    wide = max(WIDTH, min(WIDEST, photo.shape[1]))

    def picture(name: str, caption: str, pixels: np.ndarray, smooth: bool) -> Picture:
        width = wide if smooth else WIDTH
        height = max(1, round(width * photo.shape[0] / photo.shape[1]))
        return Picture(f"{prefix}_{name}", caption, encode(pixels, width, height, smooth))

    pictures = [picture("image", "image", photo, True)]
    if truth is not None:
        classes = colour(truth, colours.classes)
        pictures.append(picture("truth", "ground truth", blend(photo, classes, OPACITY), True))
    for name, shades in colours.clusters.items():
        clusters = colour(maps.read(name, image), shades)
        pictures.append(picture(name, name, blend(photo, clusters, OPACITY), True))
    if named is not None:
        words = colour(named.maps(row), named.naming.colours)
        pictures.append(picture("named", "by your names", blend(photo, words, OPACITY), True))
    functions = [
        picture(f"psi_{i}", f"eigenfunction {i + 1}", eigenfunction_image(values), False)
        for i, values in enumerate(maps.eigenfunctions(image))
    ]
    return Example(row.stem, pictures, functions)


def find_named(folder: str | Path, head: str, clusters: int) -> Named | None:
    """The label maps by name; None where there are none.

    Raises:
        InputError: they are of another head.
    """
    path = Path(folder) / "names.json"
    if not path.is_file():
        return None
    names = read_any_names(path)
    if names.head != head or len(names.codes) != clusters:
        raise InputError(
            f"{folder} must hold the label maps by name of this head ({head}), found those of "
            f"{names.head}: run `eigenseg name` (or `dvc repro name`)."
        )
    # The page has its own small maps of the photos.
    file = {**read_json(path, ""), "photos": []}
    return Named(Path(folder), class_naming(*names.naming), file)


def named_areas(named: Named | None) -> list[dict[str, Any]]:
    """Names and what they cover: share of the pixels, photos, colour; the largest first."""
    if named is None:
        return []
    areas = read_areas(named.folder)
    total = max(1, sum(map(sum, areas.values())))
    rows = [
        {
            "name": name,
            "rgb": rgb,
            "share": 100 * sum(pixels) / total,
            "photos": sum(count > 0 for count in pixels),
        }
        for (name, pixels), rgb in zip(areas.items(), named.naming.colours.tolist(), strict=True)
    ]
    return sorted(rows, key=lambda row: -float(row["share"]))

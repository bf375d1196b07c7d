"""The atlas of clusters: label maps and photos -> one page on which a person names clusters."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cache.index import ImageRow
from cache.names import FORMAT, PREDICTOR
from cache.segments import Segments
from pipeline.maps import atlas
from stages.pages import render
from stages.planned import read_planned
from stages.progress import track

PHOTOS = 1000  # on the page, at most
CELLS = 6_000_000  # of all small maps together
MOST_CELLS = 19_200  # of one of them, such as 160 x 120
SCALE = 2  # px of a photo along the side of a cell
BYTES = 11_000_000  # of all photos together
QUALITIES = (80, 65, 50, 35, 20, 8)  # of a JPEG: the first that leaves it its share of the bytes
EXAMPLES = 4  # typical and least typical regions of a cluster, each
NEIGHBOURS = 4  # of a cluster, each way


class Small(NamedTuple):
    """What is kept of the label map of one photo: cells per cluster, its regions."""

    areas: np.ndarray
    regions: atlas.Regions


def make_atlas(
    title: str,
    rows: Sequence[ImageRow],
    maps: Segments,
    suggested: Mapping[str, Any] | None,
) -> Iterator[bytes]:
    """The page, which holds all that it shows, in pieces.

    Args:
        rows: the images that have label maps.
        maps: open until the last piece: a photo is read when its piece is asked for.
        suggested: names to begin with (``classes``, ``clusters``), where labels gave some.
    """
    k = maps.clusters[PREDICTOR]
    size = min(MOST_CELLS, CELLS // min(len(rows), PHOTOS))
    pairs = np.zeros((k, k), np.int64)
    small = []
    for row in track(rows, "regions"):
        one, first_and_second = look_at(maps, row, k, size)
        np.add.at(pairs, first_and_second, 1)
        small.append(one)
    weight = np.array([row.height * row.width for row in rows], dtype=np.float64)
    areas = np.stack([one.areas for one in small])
    share = (areas / areas.sum(axis=1, keepdims=True) * (weight / weight.sum())[:, None]).sum(0)
    like = atlas.likeness(pairs)
    shown = atlas.photos_to_show(areas, PHOTOS)
    data = {
        "format": FORMAT,
        "head": maps.manifest["head"],
        "predictor": PREDICTOR,
        "k": k,
        "scale": SCALE,
        "all": len(rows),
        "clusters": cluster_entries(small, shown, share, like, areas),
        "suggested": suggested,
    }
    photos = (photo_entry(maps, rows[i], size, BYTES // len(shown)) for i in track(shown, "photos"))
    return render("atlas.html", title=title, data=data, photos=photos)


def look_at(
    maps: Segments, row: ImageRow, k: int, size: int
) -> tuple[Small, tuple[np.ndarray, np.ndarray]]:
    """Regions and areas of one photo, at the resolution of the page.

    With them ids ``(n,)`` of its patches: the clusters that came first, and second.
    """
    ids = maps.read(PREDICTOR, row.id)
    cells = atlas.shrink(ids, *grid(row, size))
    seconds, margins = maps.runner_up(row.id)
    regions = atlas.regions(cells, atlas.shrink(margins, *cells.shape))
    first = atlas.shrink(ids, *seconds.shape).ravel()
    areas = np.bincount(cells.ravel(), minlength=k)
    return Small(areas, regions), (first, seconds.ravel())


def grid(row: ImageRow, size: int) -> tuple[int, int]:
    """Rows and columns of a photo's small map: about so many cells, never more than its pixels."""
    ratio = min(1.0, (size / (row.height * row.width)) ** 0.5)
    return max(1, round(row.height * ratio)), max(1, round(row.width * ratio))


def photo_entry(maps: Segments, row: ImageRow, size: int, share: int) -> dict[str, Any]:
    """A photo as the page holds it: its name, JPEG, and label map in runs."""
    height, width = grid(row, size)
    pixels = read_planned(maps, row)
    photo = Image.fromarray(pixels).resize((SCALE * width, SCALE * height))
    cells = atlas.shrink(maps.read(PREDICTOR, row.id), height, width)
    return {
        "name": f"{row.split}/{row.stem}",
        "height": height,
        "width": width,
        "jpeg": _text(_jpeg(photo, share)),
        "runs": _text(atlas.runs(cells)),
    }


def cluster_entries(
    small: Sequence[Small],
    shown: np.ndarray,
    share: np.ndarray,
    like: np.ndarray,
    areas: np.ndarray,
) -> list[dict[str, Any]]:
    """The clusters in the order to name them."""
    shared = atlas.together(areas)
    seen = [small[i].regions for i in shown.tolist()]
    photo = np.repeat(np.arange(len(seen)), [len(one.cluster) for one in seen])
    cluster, area, margin, box = (np.concatenate(column) for column in zip(*seen, strict=True))
    entries = []
    for k in atlas.naming_order(share, like).tolist():
        own = np.flatnonzero(cluster == k)
        chosen = atlas.examples(photo[own], area[own], margin[own], EXAMPLES)
        typical, unusual = ([[int(photo[i]), *box[i].tolist()] for i in own[c]] for c in chosen)
        entries.append(
            {
                "id": k,
                "share": round(float(share[k]), 7),
                "photos": int((areas[:, k] > 0).sum()),
                "like": atlas.nearest(like[k], NEIGHBOURS),
                "with": atlas.nearest(shared[k], NEIGHBOURS),
                "typical": typical,
                "unusual": unusual,
            }
        )
    return entries


def _jpeg(photo: Image.Image, share: int) -> bytes:
    """The photo in the best of `QUALITIES` that takes at most so many bytes, else in the last."""
    content = b""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        photo.save(buffer, "JPEG", quality=quality)
        content = buffer.getvalue()
        if len(content) <= share:
            break
    return content


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")

"""The atlas of clusters: label maps and photos -> one page on which a person names clusters."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cache import runs
from cache.index import ImageRow
from cache.names import FORMAT, NO_CLASS, PREDICTOR
from cache.segments import SEMI_SUPERVISED, Segments
from pipeline.drawing.colours import palette
from pipeline.drawing.naming import learned_naming
from pipeline.maps import atlas
from pipeline.maps.named import rivals
from stages.running.progress import track
from stages.showing.pages import render
from stages.showing.planned import read_planned

PHOTOS = 1000  # on the page, at most
CELLS = 6_000_000  # of all small maps together
MOST_CELLS = 19_200  # of one of them, such as 160 x 120
SCALE = 2  # px of a photo along the side of a cell
BYTES = 13_500_000  # of all photos and small maps together; base64 makes a third more of them
QUALITIES = (80, 65, 50, 35, 20, 8)  # of a JPEG: the first that leaves it its share of the bytes
PARTS = 4  # of a cluster, into which a person may split it
MOST_SPLIT = 16_384  # clusters: PARTS times as many ids fit two bytes
EXTREMES = 4  # typical and least typical regions of a cluster, each
SAMPLE = 12  # regions of a cluster that are drawn by their area: a fair picture of it
PART_SAMPLE = 6  # of each of its parts
NEIGHBOURS = 4  # of a cluster, each way


class Whole(NamedTuple):
    """Summary of all label maps: who competes with whom, and how mixed clusters are."""

    like: np.ndarray  # (k, k)
    parts: np.ndarray | None  # (k, k), of a cluster by its rival; None: no cluster is split
    spread: np.ndarray  # (k,)


class Small(NamedTuple):
    """Summary of the label map of one photo: ids of parts in runs, cells, regions."""

    packed: bytes
    areas: np.ndarray  # (k,)
    parts: dict[int, int]  # cells by id of a part
    regions: atlas.Regions  # of clusters
    part_regions: atlas.Regions


def make_atlas(
    title: str,
    rows: Sequence[ImageRow],
    maps: Segments,
    suggested: Mapping[str, Any] | None,
    names: Mapping[str, Any] | None = None,
) -> Iterator[bytes]:
    """The page, which holds all that it shows, in pieces.

    Args:
        rows: the images that have label maps.
        maps: open until the last piece: a photo is read when its piece is asked for.
        suggested: names to begin with (``classes``, ``clusters``), where labels gave some.
        names: a file of names of this head, to begin with.
    """
    k = maps.clusters[PREDICTOR]
    size = min(MOST_CELLS, CELLS // min(len(rows), PHOTOS))
    whole = look_at_all(maps, rows, k)
    small = [look_at(maps, row, whole, k, size) for row in track(rows, "regions")]
    weight = np.array([row.height * row.width for row in rows], dtype=np.float64)
    weight /= weight.sum()
    areas = np.stack([one.areas for one in small])
    shown = atlas.photos_to_show(areas, PHOTOS)
    data = {
        "format": FORMAT,
        "head": maps.manifest["head"],
        "predictor": PREDICTOR,
        "k": k,
        "scale": SCALE,
        "all": len(rows),
        "split": 1 if whole.parts is None else PARTS,
        "rivals": []
        if whole.parts is None
        else ["".join(map(str, r)) for r in whole.parts.tolist()],
        "palette": palette(NO_CLASS).tolist(),
        "clusters": cluster_entries(small, shown, weight, areas, whole),
        "suggested": suggested,
        "learned": learned_classes(maps),
        "names": names,
    }
    share = (BYTES - sum(len(small[i].packed) for i in shown)) // len(shown)
    photos = (
        {**photo_entry(maps, rows[i], small[i].packed, size, share), "share": float(weight[i])}
        for i in track(shown.tolist(), "photos")
    )
    return render("atlas.html", title=title, data=data, photos=photos)


def look_at_all(maps: Segments, rows: Sequence[ImageRow], k: int) -> Whole:
    """Read the runners-up and the eigenfunctions of all photos, at their patch grids."""
    pairs = np.zeros((k, k), np.int64)
    moments = None
    for row in track(rows, "likeness"):
        ids, seconds = maps.read(PREDICTOR, row.id), maps.runner_up(row.id)[0]
        np.add.at(pairs, (atlas.shrink(ids, *seconds.shape).ravel(), seconds.ravel()), 1)
        scores = maps.eigenfunctions(row.id)
        moments = moments or atlas.Moments.none(k, len(scores))
        first = atlas.shrink(ids, *scores.shape[1:]).ravel()
        moments.add(first, scores.reshape(len(scores), -1).T.astype(np.float64))
    like = atlas.likeness(pairs)
    parts = atlas.divide(like, pairs, PARTS) if k <= MOST_SPLIT else None
    return Whole(like, parts, moments.spread() if moments else np.zeros(k))


def look_at(maps: Segments, row: ImageRow, whole: Whole, k: int, size: int) -> Small:
    """Regions and areas of one photo, at the resolution of the page."""
    ids = maps.read(PREDICTOR, row.id)
    seconds, margins = maps.runner_up(row.id)
    cells = atlas.shrink(ids, *grid(row, size)).astype(np.int64)
    margins = atlas.shrink(margins, *cells.shape)
    parts = cells
    if whole.parts is not None:
        rival = atlas.shrink(rivals(ids, seconds), *cells.shape)
        parts = PARTS * cells + whole.parts[cells, rival]
    counts = zip(*(values.tolist() for values in np.unique(parts, return_counts=True)), strict=True)
    areas = np.bincount(cells.ravel(), minlength=k)
    regions = atlas.regions(cells, margins)
    return Small(runs.pack(parts), areas, dict(counts), regions, atlas.regions(parts, margins))


def grid(row: ImageRow, size: int) -> tuple[int, int]:
    """Rows and columns of a photo's small map: about so many cells, never more than its pixels."""
    ratio = min(1.0, (size / (row.height * row.width)) ** 0.5)
    return max(1, round(row.height * ratio)), max(1, round(row.width * ratio))


def photo_entry(
    maps: Segments, row: ImageRow, packed: bytes, size: int, share: int
) -> dict[str, Any]:
    """A photo as the page holds it: its name, JPEG, and label map in runs."""
    height, width = grid(row, size)
    pixels = read_planned(maps, row)
    photo = Image.fromarray(pixels).resize((SCALE * width, SCALE * height))
    return {
        "name": f"{row.split}/{row.stem}",
        "sha256": row.sha256,
        "height": height,
        "width": width,
        "jpeg": _text(_jpeg(photo, share)),
        "runs": _text(packed),
        "learned": _learned(maps, row, height, width),
    }


def learned_classes(maps: Segments) -> dict[str, Any] | None:
    """Names and colours of the classes of `semi_supervised`; None where there is none."""
    labelled = maps.manifest["labelled"]
    if labelled is None:
        return None
    colours = learned_naming(labelled).colours[:-1].tolist()
    return {"classes": labelled["classes"], "colours": colours}


def _learned(maps: Segments, row: ImageRow, height: int, width: int) -> str | None:
    if SEMI_SUPERVISED not in maps.clusters:
        return None
    ids = maps.read(SEMI_SUPERVISED, row.id)
    return _text(runs.pack(atlas.shrink(ids, height, width).astype(np.int64)))


def cluster_entries(
    small: Sequence[Small], shown: np.ndarray, weight: np.ndarray, areas: np.ndarray, whole: Whole
) -> list[dict[str, Any]]:
    """The clusters in the order to name them; ``weight`` is the share of each photo."""
    share = (areas / areas.sum(axis=1, keepdims=True) * weight[:, None]).sum(axis=0)
    shared = atlas.together(areas)
    order = atlas.naming_order(share, whole.like).tolist()
    seen = [small[i] for i in shown.tolist()]
    regions = Table([one.regions for one in seen])
    parts = part_entries(small, seen, weight, whole)
    at = dict(
        zip(sorted(order), atlas.layout(whole.like[np.ix_(*[sorted(order)] * 2)]), strict=True)
    )
    entries = []
    for k in order:
        photo, area, margin, _ = regions.of(k)
        typical, unusual = atlas.examples(photo, area, margin, EXTREMES)
        entries.append(
            {
                "id": k,
                "share": round(float(share[k]), 7),
                "photos": int((areas[:, k] > 0).sum()),
                "spread": round(float(whole.spread[k]), 4),
                "at": [round(float(value), 4) for value in at[k]],
                "like": atlas.nearest(whole.like[k], NEIGHBOURS),
                "with": atlas.nearest(shared[k], NEIGHBOURS),
                "typical": regions.entries(k, typical),
                "unusual": regions.entries(k, unusual),
                "sample": regions.entries(k, atlas.sample(photo, area, SAMPLE)),
                "parts": parts.get(k, []),
            }
        )
    return entries


def part_entries(
    small: Sequence[Small], seen: Sequence[Small], weight: np.ndarray, whole: Whole
) -> dict[int, list[dict[str, Any]]]:
    """The parts of each cluster that has several: number, share, photos, and a sample."""
    if whole.parts is None:
        return {}
    share, photos = {}, {}  # type: dict[int, float], dict[int, int]
    for one, own in zip(small, weight.tolist(), strict=True):
        for part, cells in one.parts.items():
            share[part] = share.get(part, 0.0) + own * cells / one.areas.sum()
            photos[part] = photos.get(part, 0) + 1
    regions = Table([one.part_regions for one in seen])
    entries: dict[int, list[dict[str, Any]]] = {}
    for part in sorted(share):
        photo, area, *_ = regions.of(part)
        drawn = regions.entries(part, atlas.sample(photo, area, PART_SAMPLE))
        facts = {"share": round(share[part], 7), "photos": photos[part], "sample": drawn}
        entries.setdefault(part // PARTS, []).append({"part": part % PARTS, **facts})
    return {k: parts for k, parts in entries.items() if len(parts) > 1}


class Table:
    """The regions of all photos that are shown, by id."""

    def __init__(self, seen: Sequence[atlas.Regions]) -> None:
        photo = np.repeat(np.arange(len(seen)), [len(one.cluster) for one in seen])
        ids, area, margin, box = (np.concatenate(column) for column in zip(*seen, strict=True))
        self._columns = photo, area, margin, box
        order = np.argsort(ids, kind="stable")
        found, starts = np.unique(ids[order], return_index=True)
        self._own = dict(zip(found.tolist(), np.split(order, starts[1:]), strict=True))

    def of(self, id_: int) -> list[np.ndarray]:
        """Photo, area, margin ``(m,)`` and box ``(m, 4)`` of its regions."""
        own = self._own.get(id_, np.zeros(0, np.int64))
        return [column[own] for column in self._columns]

    def entries(self, id_: int, chosen: Sequence[int]) -> list[list[int]]:
        """Photo and box of some of its regions."""
        photo, _, _, box = self.of(id_)
        return [[int(photo[i]), *box[i].tolist()] for i in chosen]


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

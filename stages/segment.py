"""The segment stage: cached features, head and K-means -> label maps at the images' resolution."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import click
import numpy as np
import torch
from torch import Tensor

from cache import heads
from cache.features import Features
from cache.images import read_image, resize
from cache.index import ImageRow, images_fingerprint, read_index
from cache.segments import CRF, FORMAT, PREDICTORS, ImageMaps, write_maps
from cache.store import parts
from cache.store.artefact import fingerprint, size, work_folder
from cache.store.errors import InputError
from pipeline.device import choose_device
from pipeline.maps.crf import CRFS, Refiner, check_crf, label_map
from pipeline.maps.predictors import (
    Inputs,
    Predictors,
    ScoreMaps,
    Window,
    restore,
    runner_up,
    score_maps,
    window,
)
from pipeline.maps.sliding import Placed, average, sliding_argmax
from stages import NO_GPU, Stage, way_out
from stages.jobs import run_parts
from stages.params import Params, load

PART_IMAGES = 8  # images of one part: what a kill loses at most
EIGENFUNCTIONS = 6  # logits whose maps are kept for the report

# The cache, the levels to look at, and the models.
Opened = tuple[Features, Inputs, Predictors]


class Job(NamedTuple):
    """All that a worker needs to fill any part; small enough to send around."""

    work: str
    features: str
    context: str
    head: str
    mark: str
    temperature: float | None
    crf: str  # one of `CRFS`
    merge_to: int | None
    device: str
    clusters: tuple[int, ...]


def segment(params: Params, features: str, context: str, head: str, index: str, out: str) -> None:
    """Turn cached features into label maps of the training and the evaluation split.

    Args:
        features, context, head, index: paths of what these stages wrote.
        out: path of the label maps to write. Interrupted, the same call goes on where it was.
    """
    check_crf(params.segment.crf, params.segment.temperature)
    with way_out(NO_GPU):
        choose_device(params.compute.device)
    cache = Features.open(features).beside(context)
    _, centres, head_manifest = heads.load_head(head)
    check_head(head, head_manifest, cache)
    rows = images_of(read_index(index), index, cache)
    check_merging(params.segment.merge_to, head_manifest["head"]["clusters"])
    clusters = tuple(
        params.segment.merge_to or len(centres[name]["centroids"]) for name in PREDICTORS
    )
    manifest = describe(params, cache, head_manifest, rows, clusters)
    mark = manifest["fingerprint"]
    with work_folder(out, mark) as work:
        chosen = params.segment
        choices = (chosen.temperature, chosen.crf, chosen.merge_to, params.compute.device)
        job = Job(str(work), features, context, head, mark, *choices, clusters)
        images = {
            f"{i:08d}": (rows[i : i + PART_IMAGES],) for i in range(0, len(rows), PART_IMAGES)
        }
        names = run_parts(fill_part, job, images, params.compute, "segmenting")
        parts.assemble(work, names, out, manifest)
    click.echo(f"{out}: {len(rows)} images, {size(out) / 1e6:.1f} MB")


def fill_part(job: Job, name: str, images: Sequence[ImageRow]) -> None:
    """Compute and write the maps of some images."""
    clusters = dict(zip(PREDICTORS, job.clusters, strict=True))
    write_maps(job.work, name, maps_of(job, images), clusters)


def maps_of(job: Job, images: Sequence[ImageRow]) -> Iterator[ImageMaps]:
    """The label maps of some images in every protocol, one image after the other."""
    protocols = _opened(job)[0].manifest["protocols"]
    for image in images:
        looks = {
            name: look(_opened(job), image, number, job.temperature, choose_device(job.device))
            for number, name in enumerate(protocols)
        }
        labels = {name: label_maps(seen, None) for name, seen in looks.items()}
        if (refiner := CRFS[job.crf]) is not None:
            pixels = read_image(image.path, sha256=image.sha256)
            for name, seen in looks.items():
                labels[f"{name}{CRF}"] = label_maps(seen, refiner, seen.frame.cut(pixels))
        at_grid = next(iter(looks.values())).at_grid()
        functions = at_grid.eigenfunctions.cpu().numpy()
        yield ImageMaps(image.id, labels, functions, *runner_up(at_grid.ours))


class Frame(NamedTuple):
    """Where the tiles of an image lie, and what is made of them.

    Attributes:
        boxes: top, left, height, width of each tile in the resized image, px.
        resized, size: heights and widths of the resized image and of the label map, px.
        sliding: the tiles are averaged in pixels; else there is one.
    """

    boxes: list[tuple[int, int, int, int]]
    resized: tuple[int, int]
    size: tuple[int, int]
    sliding: bool

    def placed(self, scores: Sequence[Tensor]) -> list[Placed]:
        """The scores of every tile in their places."""
        return [Placed(*tile) for tile in zip(scores, *zip(*self.boxes, strict=True), strict=True)]

    def cut(self, photo: np.ndarray) -> np.ndarray:
        """The pixels of the label map: uint8 ``(*size, 3)`` of a photo ``(H, W, 3)``."""
        if self.size == photo.shape[:2]:
            return photo
        top, left, height, width = self.boxes[0]
        return resize(photo, *self.resized)[top : top + height, left : left + width]


def frame_of(cache: Features, image: ImageRow, number: int) -> tuple[list[int], Frame]:
    """The tiles that the protocol of that number sees of an image, and where they lie."""
    plan = list(cache.manifest["protocols"].values())[number]
    own = (cache.tiles["image"] == image.id) & (cache.tiles["view"] == -1 - number)
    tiles = np.flatnonzero(own).tolist()
    rows = [cache.tiles[tile] for tile in tiles]
    boxes = [row[["top", "left", "height", "width"]].item() for row in rows]
    resized = int(rows[0]["resized_h"]), int(rows[0]["resized_w"])
    size = boxes[0][2:] if plan["crop"] else (image.height, image.width)
    return tiles, Frame(boxes, resized, size, bool(plan["window"]) or len(tiles) > 1)


class Look(NamedTuple):
    """What a protocol sees of an image: a frame, and scores at the patch grid of each tile."""

    frame: Frame
    maps: list[ScoreMaps]
    patch: int

    def of(self, name: str) -> list[Tensor]:
        """The scores of a predictor, or the eigenfunctions, of each tile."""
        return [getattr(maps, name) for maps in self.maps]

    def at_grid(self) -> ScoreMaps:
        """Scores at a patch grid of all that is seen."""
        frame = self.frame
        if not frame.sliding:
            return self.maps[0]
        height, width = (max(1, round(side / self.patch)) for side in frame.resized)
        return ScoreMaps(
            *(
                average(frame.placed(self.of(n)), frame.resized, (height, width))
                for n in ScoreMaps._fields
            )
        )


def label_maps(
    seen: Look, refiner: Refiner | None, pixels: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Cluster ids of each predictor: uint16 ``(height, width)``; pixels are for the refiner."""
    return {
        name: label_ids(seen.of(name), seen.frame, refiner, pixels, logits=name == "ours")
        for name in PREDICTORS
    }


def label_ids(
    scores: Sequence[Tensor],
    frame: Frame,
    refiner: Refiner | None,
    pixels: np.ndarray | None,
    *,
    logits: bool,
) -> np.ndarray:
    """Cluster ids uint16 ``frame.size`` of scores ``(K, h, w)`` of each tile; as `label_map`."""
    if not frame.sliding:
        return label_map(scores[0], *frame.size, pixels, refiner, logits=logits)
    placed = frame.placed(scores)
    if refiner is None:
        return sliding_argmax(placed, frame.resized, *frame.size)
    return label_map(average(placed, frame.resized), *frame.size, pixels, refiner, logits=logits)


def look(
    opened: Opened, image: ImageRow, number: int, temperature: float | None, device: torch.device
) -> Look:
    """Score what the protocol of that number sees of an image."""
    cache, inputs, predictors = opened
    patch = cache.manifest["patch"]
    plan = list(cache.manifest["protocols"].values())[number]
    tiles, frame = frame_of(cache, image, number)
    windows = [window_of(cache, tile, inputs, device) for tile in tiles]
    score = partial(score_maps, predictors, temperature=temperature, eigenfunctions=EIGENFUNCTIONS)
    if plan["crop"] or plan["window"]:
        alone = [window._replace(top=0, left=0) for window in windows]
        return Look(frame, [score([w], w.grid_h, w.grid_w) for w in alone], patch)
    # Tiles of whole patches are put together in the patch grid, before any pixel is made.
    maps = score(windows, frame.resized[0] // patch, frame.resized[1] // patch)
    return Look(frame._replace(boxes=[(0, 0, *frame.resized)], sliding=False), [maps], patch)


def window_of(cache: Features, tile: int, inputs: Inputs, device: torch.device) -> Window:
    """The tokens of a tile and its place in the image's grid."""
    row, patch = cache.tiles[tile], cache.manifest["patch"]
    return window(
        {level: cache.tokens(level, tile) for level in (*inputs.head, inputs.kmeans)},
        inputs,
        corner=(int(row["top"]) // patch, int(row["left"]) // patch),
        grid=(int(row["grid_h"]), int(row["grid_w"])),
        flip=bool(row["flip"]),
        device=device,
    )


@lru_cache(maxsize=1)
def _opened(job: Job) -> Opened:
    """Opened once in each process."""
    state, centres, manifest = heads.load_head(job.head)
    device = choose_device(job.device)
    inputs, predictors = restore(manifest, state, centres, device, job.merge_to)
    return Features.open(job.features).beside(job.context), inputs, predictors


def check_merging(merge_to: int | None, clusters: int) -> None:
    """Raise InputError unless the clusters can be merged to so many segments."""
    if merge_to is not None and merge_to > clusters:
        raise InputError(
            f"segment.merge_to ({merge_to}) must not exceed the {clusters} clusters of the head: "
            "lower it, set it to null, or train with more `clusters`"
        )


def check_head(path: str, manifest: dict, cache: Features) -> None:
    """Raise InputError unless the head was trained on this cache."""
    if cache.fingerprint != manifest["features"]:
        raise InputError(
            f"the head {path} was trained on another feature cache ({manifest['features']}, "
            f"{cache.path} is {cache.fingerprint}): run `eigenseg train` (or `dvc repro train`) "
            "again."
        )


def images_of(rows: Sequence[ImageRow], index: str, cache: Features) -> list[ImageRow]:
    """The images that get label maps, in the order of their ids.

    Raises:
        InputError: the index and the feature cache are not of the same images.
    """
    if images_fingerprint(rows) != cache.manifest["index"]:
        raise InputError(
            f"{index} and {cache.path} must hold the same images in the same order, found others "
            f"among {len(rows)}: run `dvc repro` (or `eigenseg extract`)."
        )
    return [row for row in rows if row.split in cache.manifest["segmented"]]


def describe(
    params: Params,
    cache: Features,
    head: dict,
    rows: Sequence[ImageRow],
    clusters: tuple[int, ...],
) -> dict:
    """What the maps are made from; the fingerprint covers the trained values, by their digests."""
    made_from = {
        "features": cache.fingerprint,
        "head": head["fingerprint"],
        "model": head["backbone"]["model"],
        "seed": head["seed"],
        "curve": head["curve"],
        **params.segment.model_dump(exclude={"names"}),
        "clusters": dict(zip(PREDICTORS, clusters, strict=True)),
        "protocols": cache.manifest["protocols"],
        "variants": variants(cache.manifest["protocols"], params.segment.crf),
        "images": {row.id: row.sha256 for row in rows},
    }
    sizes = [(row.height, row.width) for row in rows]
    mark = fingerprint("segments", FORMAT, made_from, head["sha256"], sizes)
    return {"format": FORMAT, **made_from, "fingerprint": mark}


def variants(protocols: Iterable[str], crf: str) -> list[str]:
    """The kinds of label maps: each protocol, and each with the CRF if there is one."""
    endings = ["", CRF] if CRFS[crf] is not None else [""]
    return [f"{name}{ending}" for name in protocols for ending in endings]


@click.command(cls=Stage)
@click.option("--params", default="params.yaml", help="Choices.")
@click.option("--features", default="data/features.zarr", help="Feature cache.")
@click.option("--context", default="data/context.zarr", help="Cache of the level `context`.")
@click.option("--head", default="data/head", help="Folder of the trained head.")
@click.option("--index", default="data/index.csv", help="Index of images.")
@click.option("--out", default="data/segments.h5", help="Label maps to write.")
def main(params: str, features: str, context: str, head: str, index: str, out: str) -> None:
    """Turn cached features into label maps at the images' resolution.

    Reads data/features.zarr, data/context.zarr, data/head and data/index.csv (no ViT, and images
    only for a CRF), writes data/segments.h5: for every image of the training and the evaluation
    split the cluster ids of the three predictors and the first eigenfunctions. Interrupted, it
    goes on where it was.
    """
    segment(load(params), features, context, head, index, out)


if __name__ == "__main__":
    main()

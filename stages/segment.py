"""The segment stage: cached features, head and K-means -> label maps at the images' resolution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import click
import numpy as np
import torch

from cache import heads
from cache.features import Features
from cache.images import read_image
from cache.index import ImageRow, images_mark, read_index
from cache.segments import FORMAT, PREDICTORS, ImageMaps, write_maps
from cache.store import parts
from cache.store.artefact import fingerprint, size, work_folder
from cache.store.errors import InputError
from pipeline.device import choose_device
from pipeline.maps.crf import CRFS, check_crf, label_map
from pipeline.maps.predictors import (
    Inputs,
    Predictors,
    Window,
    restore,
    runner_up,
    score_maps,
    window,
)
from stages import NO_GPU, Stage, way_out
from stages.jobs import run_parts
from stages.params import Params, load

PART_IMAGES = 8  # images of one part: what a kill loses at most
EIGENFUNCTIONS = 6  # logits whose maps are kept for the report


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
    rows = images_of(read_index(index), index, cache, params.segmented)
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
    """The label maps of some images, one after the other."""
    cache, inputs, predictors = _opened(job)
    patch, device = cache.manifest["patch"], choose_device(job.device)
    for image in images:
        own = cache.tiles["image"] == image.id
        tiles = np.flatnonzero(own & (cache.tiles["view"] == -1))
        row = cache.tiles[tiles[0]]
        scores = score_maps(
            predictors,
            [window_of(cache, tile, inputs, device) for tile in tiles.tolist()],
            int(row["resized_h"]) // patch,
            int(row["resized_w"]) // patch,
            temperature=job.temperature,
            eigenfunctions=EIGENFUNCTIONS,
        )
        refiner = CRFS[job.crf]
        pixels = read_image(image.path, sha256=image.sha256) if refiner else None
        at = image.height, image.width, pixels, refiner
        labels = {
            name: label_map(getattr(scores, name), *at, logits=name == "ours")
            for name in PREDICTORS
        }
        functions = scores.eigenfunctions.cpu().numpy()
        yield ImageMaps(image.id, labels, functions, *runner_up(scores.ours))


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
def _opened(job: Job) -> tuple[Features, Inputs, Predictors]:
    """The cache, the levels to look at, and the models; once in each process."""
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


def images_of(
    rows: Sequence[ImageRow], index: str, cache: Features, splits: Sequence[str]
) -> list[ImageRow]:
    """The images of the splits, in the order of their ids.

    Raises:
        InputError: the index and the feature cache are not of the same images.
    """
    if images_mark(rows) != cache.manifest["index"]:
        raise InputError(
            f"{index} and {cache.path} must hold the same images in the same order, found others "
            f"among {len(rows)}: run `dvc repro` (or `eigenseg extract`)."
        )
    for split in splits:
        cache.tiles_of(split)
    return [row for row in rows if row.split in splits]


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
        "images": {row.id: row.sha256 for row in rows},
    }
    sizes = [(row.height, row.width) for row in rows]
    mark = fingerprint("segments", FORMAT, made_from, head["sha256"], sizes)
    return {"format": FORMAT, **made_from, "fingerprint": mark}


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

"""The segment stage: cached features, head and K-means -> label maps at the images' resolution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import click
import numpy as np
import torch

from cache import heads, params, parts
from cache.artefact import fingerprint, size, work_folder
from cache.errors import InputError
from cache.features import Features
from cache.images import read_image
from cache.index import ImageRow, read_index
from cache.part_jobs import fill
from cache.segments import FORMAT, PREDICTORS, ImageMaps, write_maps
from pipeline.crf import Crf, choose_crf, label_map
from pipeline.device import choose_device
from pipeline.predictors import Inputs, Predictors, Window, restore, score_maps, window
from stages import Stage

PART_IMAGES = 8  # images of one part: what a kill loses at most
EIGENFUNCTIONS = 6  # logits whose maps are kept for the report


class Job(NamedTuple):
    """All that a worker needs to fill any part; small enough to send around."""

    work: str
    features: str
    head: str
    mark: str
    temperature: float | None
    crf: Crf | None
    device: str
    clusters: tuple[int, ...]


@click.command(cls=Stage)
@click.option("--params", "params_path", default="params.yaml", help="Choices.")
@click.option("--features", "features_path", default="data/features.zarr", help="Feature cache.")
@click.option("--head", "head_path", default="data/head", help="Folder of the trained head.")
@click.option("--index", default="data/index.csv", help="Index of images.")
@click.option("--out", default="data/segments.h5", help="Label maps to write.")
def main(params_path: str, features_path: str, head_path: str, index: str, out: str) -> None:
    """Turn cached features into label maps at the images' resolution.

    Reads data/features.zarr, data/head and data/index.csv (no ViT, and images only for a CRF),
    writes data/segments.h5: for every image of the training and the evaluation split the cluster
    ids of the three predictors and the first eigenfunctions. Interrupted, it goes on where it was.
    """
    chosen = params.load(params_path)
    crf = choose_crf(**chosen.segment.crf.model_dump())
    features = Features.open(features_path)
    _, centres, head_manifest = heads.load_head(head_path)
    _check_features(head_path, head_manifest, features)
    rows = _images(read_index(index), index, features, chosen.splits)
    clusters = (head_manifest["head"]["clusters"],)
    clusters += tuple(len(centres[name]["centroids"]) for name in PREDICTORS[1:])
    manifest = _manifest(chosen, features, head_manifest, rows, clusters)
    mark = manifest["fingerprint"]
    with work_folder(out, mark) as work:
        settings = (chosen.segment.temperature, crf, chosen.compute.device, clusters)
        job = Job(str(work), features_path, head_path, mark, *settings)
        images = {
            f"{i:08d}": (rows[i : i + PART_IMAGES],) for i in range(0, len(rows), PART_IMAGES)
        }
        names = fill(fill_part, job, images, chosen.compute, "segmenting")
        parts.assemble(work, names, out, manifest)
    click.echo(f"{out}: {len(rows)} images, {size(out) / 1e6:.1f} MB")


def fill_part(job: Job, name: str, images: Sequence[ImageRow]) -> None:
    """Compute and write the maps of some images."""
    clusters = dict(zip(PREDICTORS, job.clusters, strict=True))
    write_maps(job.work, name, _maps(job, images), clusters)


def _maps(job: Job, images: Sequence[ImageRow]) -> Iterator[ImageMaps]:
    features, inputs, predictors = _inputs(job)
    patch, device = features.manifest["patch"], choose_device(job.device)
    for image in images:
        tiles = _tiles(features, image.id)
        row = features.tiles[tiles[0]]
        found = score_maps(
            predictors,
            [_window(features, tile, inputs, device) for tile in tiles],
            int(row["resized_h"]) // patch,
            int(row["resized_w"]) // patch,
            temperature=job.temperature,
            eigenfunctions=EIGENFUNCTIONS,
        )
        pixels = None if job.crf is None else read_image(image.path)
        labels = {
            name: label_map(getattr(found, name), image.height, image.width, pixels, job.crf)
            for name in PREDICTORS
        }
        yield ImageMaps(image.id, labels, found.eigenfunctions.cpu().numpy())


def _tiles(features: Features, image: int) -> np.ndarray:
    """Ids of the tiles that cover an image; enlarged or reduced views of it are left out."""
    table = features.tiles
    return np.flatnonzero((table["image"] == image) & (table["scale"] == 1))


def _window(features: Features, tile: int, inputs: Inputs, device: torch.device) -> Window:
    """The tokens of a tile and its place in the image's grid."""
    row, patch = features.tiles[tile], features.manifest["patch"]
    return window(
        {level: features.tokens(level, tile) for level in inputs.stored},
        inputs,
        corner=(int(row["top"]) // patch, int(row["left"]) // patch),
        grid=(int(row["grid_h"]), int(row["grid_w"])),
        flip=bool(row["flip"]),
        device=device,
    )


@lru_cache(maxsize=1)
def _inputs(job: Job) -> tuple[Features, Inputs, Predictors]:
    """The cache, the levels to look at, and the models; once in each process."""
    state, centres, manifest = heads.load_head(job.head)
    device = choose_device(job.device)
    inputs, predictors = restore(manifest, state, centres, device)
    return Features.open(job.features), inputs, predictors


def _check_features(path: str, manifest: dict, features: Features) -> None:
    found, expected = features.manifest["fingerprint"], manifest["features"]
    if found != expected:
        raise InputError(
            f"the head {path} was trained on another feature cache ({expected}, {features.path} is "
            f"{found}): run `eigenseg train` (or `dvc repro train`) again."
        )


def _images(
    rows: Sequence[ImageRow], index: str, features: Features, splits: Sequence[str]
) -> list[ImageRow]:
    """The images of the splits, in the order of their ids.

    Raises:
        InputError: the index and the feature cache are not of the same images.
    """
    tiles = np.concatenate([features.tiles_of(split) for split in splits])
    cached = set(features.tiles["image"][tiles].tolist())
    wanted = [row for row in rows if row.split in splits]
    if {row.id for row in wanted} != cached:
        raise InputError(
            f"{index} and {features.path} must hold the same images, found {len(wanted)} and "
            f"{len(cached)} in split {', '.join(splits)}: run `dvc repro` (or `eigenseg extract`)."
        )
    return wanted


def _manifest(
    chosen: params.Params,
    features: Features,
    head: dict,
    rows: Sequence[ImageRow],
    clusters: tuple[int, ...],
) -> dict:
    """What the maps are made from; the fingerprint covers the trained values, by their digests."""
    made_from = {
        "features": features.manifest["fingerprint"],
        "head": head["fingerprint"],
        "temperature": chosen.segment.temperature,
        "crf": chosen.segment.crf.model_dump() if chosen.segment.crf.iterations else None,
        "clusters": dict(zip(PREDICTORS, clusters, strict=True)),
        "images": [row.id for row in rows],
    }
    sizes = [(row.height, row.width) for row in rows]
    mark = fingerprint("segments", FORMAT, made_from, head["sha256"], sizes)
    return {"format": FORMAT, **made_from, "fingerprint": mark}


if __name__ == "__main__":
    main()

"""The extract stage: the frozen ViT once over every image -> the feature cache."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch

from cache import feature_writer, features
from cache.backbone import facts, load_backbone, weights_hash
from cache.images import read_row
from cache.index import ImageRow, images_fingerprint, read_index
from cache.store.artefact import amount, fingerprint, free_bytes, publish, size, work_folder
from cache.store.errors import InputError
from pipeline.device import choose_device, use_bfloat16
from pipeline.features.tiles import Layout, cache_bytes, plan_layout
from pipeline.features.views import distort, view_generator
from pipeline.features.vit import (
    Backbone,
    Levels,
    block_numbers,
    check_keys,
    downsample,
    half_tokens,
    named_blocks,
)
from pipeline.geometry import Geometry, resize, tile_pixels
from stages import program, way_out
from stages.running.ahead import ahead
from stages.running.hardware import chosen_device
from stages.running.jobs import run
from stages.running.plans import geometry_of, tile_table, whole_photos
from stages.settings.params import Params, load

SHARD_PATCHES = 32768  # in one shard of the cache, the unit of work and of resuming
TILE_PATCHES = 8192  # a larger image is cut into windows
DECODERS = 16  # threads that decode images, if there are as many cores


class Job(NamedTuple):
    """Everything that a worker needs to fill any shard; small enough to send around."""

    folder: str
    done: str
    images: str
    model: str
    weights: str | None
    weights_sha256: str
    levels: Levels
    batch: int
    device: str
    shard_slots: int
    patch: int
    colour: float  # strength of the views' distortions
    seed: int  # of the views


class Batch(NamedTuple):
    """Tiles of one shape (rows of the table) that lie in one shard."""

    shard: int
    tiles: np.ndarray


def extract(params: Params, index: str, out: str) -> None:
    """Run the frozen ViT once over every image of an index; write the feature cache.

    Args:
        index: path of the index of images.
        out: folder of the cache to write. Interrupted, the same call goes on where it was.
    """
    rows = read_index(index)
    backbone = open_backbone(params.vit.model, params.vit.weights)
    if params.extract.keys:
        with way_out("set `extract.keys` to false"):
            check_keys(backbone.model)
    manifest = describe(params, rows, backbone)
    with work_folder(out, manifest["fingerprint"]) as work:
        job, todo, shards = declare(params, manifest, rows, index, work)
        if len(todo) < shards:
            click.echo(f"resumed: {shards - len(todo)} of {shards} shards were finished")
        jobs = [(job, shard) for shard in todo]
        together = fill_shards(job, todo)
        run(fill_shard, jobs, params.compute, work, "extracting features", together=together)
        feature_writer.finish(Path(job.folder), Path(job.done), shards, manifest)
        publish(job.folder, out)
    tiles = features.read_tiles(Path(out))
    patches = int((tiles["grid_h"] * tiles["grid_w"]).sum())
    click.echo(f"{out}: {len(tiles)} tiles, {patches} patches, {amount(size(out))}")


def declare(
    params: Params, manifest: dict, rows: list[ImageRow], index: str, work: Path
) -> tuple[Job, list[int], int]:
    """Plan the cache and create it below ``work``; the shards still to do, and how many there are.

    Args:
        manifest: what `describe` gives.
        index: path of the index, whose rows are ``rows``.
    """
    protocols = {name: Geometry(**fields) for name, fields in manifest["protocols"].items()}
    table = tile_table(rows, params, Geometry(**manifest["whole"]), protocols)
    sizes = (table["grid_h"] * table["grid_w"]).tolist()
    layout = plan_layout(sizes, SHARD_PATCHES)
    table["start"] = layout.starts
    job = _job(params, manifest, work, index, layout)
    folder, done = Path(job.folder), Path(job.done)
    dtype = params.extract.dtype
    todo = feature_writer.declare(folder, done, manifest["channels"], dtype, table, *layout[1:])
    shard = cache_bytes(layout, manifest["channels"], np.dtype(dtype).itemsize)
    check_space(work, len(table), shard * layout.shards, shard * len(todo))
    return job, todo, layout.shards


def check_space(work: Path, tiles: int, total: int, missing: int) -> None:
    """Tell how many bytes the cache takes, and refuse to begin where they are not free."""
    free = free_bytes(work)
    click.echo(f"{tiles} tiles take {amount(total)} of disk, {amount(free)} are free")
    if missing > free:
        raise InputError(
            f"the disk of {work} must have room for the cache: {amount(missing)} are needed, "
            f"{amount(free)} are free. Make room, lower `extract.train.views` "
            "or `.short_side`, cache fewer `extract.blocks`, or set extract.dtype to int8."
        )


def _job(params: Params, manifest: dict, work: Path, index: str, layout: Layout) -> Job:
    return Job(
        folder=str(work / "features.zarr"),
        done=str(work / "done"),
        images=index,
        model=params.vit.model,
        weights=params.vit.weights,
        weights_sha256=manifest["weights_sha256"],
        levels=Levels.of(manifest["levels"], manifest["normed"], manifest["bfloat16"]),
        batch=params.extract.batch,
        device=params.compute.device,
        shard_slots=layout.shard,
        patch=manifest["patch"],
        colour=params.extract.train.colour,
        seed=params.extract.train.seed,
    )


def fill_shard(job: Job, shard: int) -> None:
    """Compute and write one shard; it depends on nothing but its arguments and the images."""
    for _ in fill_shards(job, [shard], decoders=2):  # beside it other jobs decode too
        pass


def fill_shards(job: Job, shards: Sequence[int], decoders: int = DECODERS) -> Iterator[int]:
    """Compute and write shards in order; the number of each as soon as it is written.

    While the ViT is at work, images are decoded ahead, beyond the end of a shard, and the shard
    before is written. Held are two shards and a batch of pixels for each core, up to ``decoders``.
    """

    def write(item: tuple[int, dict[str, np.ndarray]]) -> None:
        feature_writer.write_shard(Path(job.folder), Path(job.done), *item)

    threads = min(os.cpu_count() or 1, decoders)
    with closing(_shards(job, shards, threads)) as computed:
        for (shard, _), _ in ahead(write, computed, threads=1, waiting=1):
            yield shard


def _shards(
    job: Job, shards: Sequence[int], threads: int
) -> Generator[tuple[int, dict[str, np.ndarray]], None, None]:
    """Number and arrays, float16 ``(slots, C)``, of each shard."""
    backbone = _verified(job.model, job.weights, job.weights_sha256)
    rows = read_index(job.images)
    batches = plan_batches(features.read_tiles(Path(job.folder)), shards, job)
    decoded = ahead(partial(read_pixels, rows, job), batches, threads=threads, waiting=threads)
    with closing(decoded):
        for shard, group in groupby(decoded, lambda item: item[0].shard):
            arrays: dict[str, np.ndarray] = {}
            for batch, pixels in group:
                _place(compute(backbone, pixels, job), batch, rows, job, arrays)
            yield shard, arrays


def _place(
    computed: dict[str, np.ndarray],
    batch: Batch,
    rows: list[ImageRow],
    job: Job,
    arrays: dict[str, np.ndarray],
) -> None:
    """Put what was computed of a batch to its slots in the arrays of its shard."""
    for name, values in computed.items():
        if name not in arrays:
            arrays[name] = np.full((job.shard_slots, values.shape[-1]), np.nan, np.float16)
        for tile, tokens in zip(batch.tiles, values, strict=True):
            _check_finite(tokens, name, rows[tile["image"]])
            start = tile["start"] - batch.shard * job.shard_slots
            arrays[name][start : start + len(tokens)] = tokens


def compute(backbone: Backbone, pixels: torch.Tensor, job: Job) -> dict[str, np.ndarray]:
    """Compute what the cache holds of a batch: float16 ``(B, patches, C)`` of each array."""
    pixels = pixels.to(choose_device(job.device))
    arrays = half_tokens(backbone, pixels, job.levels)
    arrays["rgb"] = downsample(pixels, backbone.patch).half().cpu().numpy()
    return arrays


def plan_batches(table: np.ndarray, shards: Sequence[int], job: Job) -> Iterator[Batch]:
    """Batches of at most `Job.batch` tiles, shard after shard.

    Args:
        table: dtype `features.TILE_FIELDS`; the starts ascend.
    """
    starts = np.ascontiguousarray(table["start"])
    for shard in shards:
        ends = np.array([shard, shard + 1]) * job.shard_slots
        tiles = table[slice(*np.searchsorted(starts, ends))]
        for shape in np.unique(tiles[["height", "width"]]):
            same = tiles[tiles[["height", "width"]] == shape]
            for first in range(0, len(same), job.batch):
                yield Batch(shard, same[first : first + job.batch])


def read_pixels(rows: list[ImageRow], job: Job, batch: Batch) -> torch.Tensor:
    """Pixels of a batch: float32 ``(B, 3, height, width)`` in [0, 1], in whole patches."""
    pixels = []
    # Windows of one image follow each other: it is decoded once.
    whole = groupby(batch.tiles, lambda tile: tile[["image", "resized_h", "resized_w"]].item())
    for (image, height, width), tiles in whole:
        photo = read_row(rows[image])
        resized = resize(photo, height, width)
        for tile in tiles:
            box = tile[["top", "left", "height", "width"]].item()
            cut = tile_pixels(resized, box, job.patch, bool(tile["flip"]))
            if tile["view"] >= 0 and job.colour:
                draws = view_generator(job.seed, rows[image].sha256, int(tile["view"]), True)
                cut = torch.from_numpy(distort(cut.numpy(), job.colour, draws))
            pixels.append(cut)
    return torch.stack(pixels)


def _check_finite(values: np.ndarray, name: str, row: ImageRow) -> None:
    if not features.finite(values):
        raise ValueError(
            f"{row.path}: the features of {name} are NaN or beyond float16. Check the weights; "
            "a block whose values are that large can pass the final norm (`extract.final_norm`)."
        )


def open_backbone(model: str, weights: str | None) -> Backbone:
    """The frozen ViT with its facts; loaded once in each process."""
    loaded = load_backbone(model, weights)
    return Backbone(loaded, **facts(loaded))


@lru_cache(maxsize=1)
def _verified(model: str, weights: str | None, sha256: str) -> Backbone:
    """The ViT with the weights that the command saw.

    A worker may have kept another model of that name, of another folder or from before the file
    was changed, or may find another file.

    Raises:
        InputError: its weights are others.
    """
    backbone = open_backbone(model, weights)
    if weights_hash(backbone.model) != sha256:
        load_backbone.cache_clear()
        backbone = open_backbone(model, weights)
    if weights_hash(backbone.model) != sha256:
        raise InputError(
            f"{model} must have the same weights on every worker, but those on "
            f"{socket.gethostname()} are not those of the command: give all machines the same file "
            "(`backbones.<name>.weights`)."
        )
    return backbone


def describe(params: Params, rows: list[ImageRow], backbone: Backbone) -> dict:
    """Describe what the cache is made from; the fingerprint covers images, weights, parameters."""
    extract = params.extract
    device = chosen_device(params.compute.device)
    with way_out("correct `extract.blocks` and `extract.final_norm`"):
        blocks = block_numbers(extract.blocks, backbone.depth)
        normed = block_numbers(extract.final_norm, backbone.depth)
    bfloat16 = use_bfloat16(extract.precision, device)
    whole = whole_photos(extract.train, backbone.patch, TILE_PATCHES)
    protocols = params.protocols_used.items()
    names = _level_names(blocks, backbone.depth, extract.keys)
    width = int(backbone.model.num_features)  # type: ignore[arg-type]
    facts_of_run = {
        "model": params.vit.model,
        "weights_sha256": weights_hash(backbone.model),
        "patch": backbone.patch,
        "mean": backbone.mean,
        "std": backbone.std,
        "levels": names,
        "normed": normed,
        "bfloat16": bfloat16,
        "splits": list(dict.fromkeys(row.split for row in rows)),
        "params": extract.model_dump(),
        "train": params.train_split,
        "whole": whole._asdict(),
        "protocols": {name: geometry_of(one, whole)._asdict() for name, one in protocols},
        "segmented": params.segmented,
        "white": next((r.white for r in rows if r.split == params.train_split and r.white), None),
        "shard_patches": SHARD_PATCHES,
    }
    index = images_fingerprint(rows)
    return {
        **facts_of_run,
        # Where the weights lay, for `predict`. The fingerprint has their digest instead.
        "weights": params.vit.weights,
        "images": len(rows),
        "index": index,
        "channels": {**dict.fromkeys(names.values(), width), "rgb": 3},
        "fingerprint": fingerprint(features.FORMAT, facts_of_run, index),
    }


def _level_names(blocks: Sequence[int], depth: int, keys: bool) -> dict[str, str]:
    """Every name of a cached level, and the array that holds it."""
    names = {str(n): f"block_{n:02d}" for n in blocks}
    for name, number in named_blocks(depth).items():
        if number in blocks:
            names[name] = f"block_{number:02d}"
    return {**names, "keys": "keys"} if keys else names


def command(params: str, index: str, out: str) -> None:
    """Do what the command line asks for."""
    extract(load(params), index, out)


if __name__ == "__main__":
    program("extract")

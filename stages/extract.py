"""The extract stage: the frozen ViT once over every image -> the feature cache."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch

from cache import features, params
from cache.artefact import fingerprint, publish, size, work_folder
from cache.backbone import facts, load_backbone, weights_hash
from cache.images import read_tile
from cache.index import ImageRow, read_index
from cache.jobs import run
from pipeline.device import choose_device, hardware_bfloat16
from pipeline.features import (
    Backbone,
    Levels,
    block_numbers,
    check_keys,
    downsample,
    half_tokens,
)
from pipeline.tiles import Layout, Tile, plan_layout, plan_tiles
from stages import Stage


class Job(NamedTuple):
    """All that a worker needs to fill any shard; small enough to send around."""

    folder: str
    done: str
    images: str
    model: str
    weights: str | None
    levels: Levels
    batch: int
    device: str
    shard_slots: int


@click.command(cls=Stage)
@click.option("--params", "params_path", default="params.yaml", help="Choices.")
@click.option("--index", default="data/index.csv", help="Index of images.")
@click.option("--out", default="data/features.zarr", help="Feature cache to write.")
def main(params_path: str, index: str, out: str) -> None:
    """Run the frozen ViT once over every image into the Zarr cache.

    Reads data/index.csv and its images, writes data/features.zarr: tokens of the chosen blocks (and
    keys), and the colours at the patch grid, of every tile. Interrupted, it goes on where it was.
    """
    chosen = params.load(params_path)
    rows = read_index(index)
    entry = chosen.backbones[chosen.backbone]
    backbone = open_backbone(entry.model, entry.weights)
    if chosen.extract.keys:
        check_keys(backbone.model)
    table = _table(rows, chosen.extract, backbone.patch)
    sizes = (table["grid_h"] * table["grid_w"]).tolist()
    layout = plan_layout(sizes, chosen.extract.shard_tokens)
    table["start"] = layout.starts
    manifest = _manifest(chosen, rows, backbone)
    with work_folder(out, manifest["fingerprint"]) as work:
        job = _job(chosen, manifest, work, index, layout)
        folder, done = Path(job.folder), Path(job.done)
        channels = {**manifest["channels"], "rgb": 3}
        todo = features.declare(folder, done, channels, table, *layout[1:])
        if len(todo) < layout.shards:
            finished = layout.shards - len(todo)
            click.echo(f"resumed: {finished} of {layout.shards} shards were finished")
        run(fill_shard, [(job, n) for n in todo], chosen.compute.scheduler, "extracting features")
        features.finish(folder, done, layout.shards, manifest)
        publish(folder, out)
    gigabytes = size(out) / 1e9
    click.echo(f"{out}: {len(table)} tiles, {sum(sizes)} patches, {gigabytes:.2f} GB")


def _job(chosen: params.Params, manifest: dict, work: Path, index: str, layout: Layout) -> Job:
    entry = chosen.backbones[chosen.backbone]
    return Job(
        folder=str(work / "features.zarr"),
        done=str(work / "done"),
        images=index,
        model=entry.model,
        weights=entry.weights,
        levels=Levels.of(manifest["levels"], manifest["normed"], manifest["bfloat16"]),
        batch=chosen.extract.batch,
        device=chosen.compute.device,
        shard_slots=layout.shard,
    )


def fill_shard(job: Job, shard: int) -> None:
    """Compute and write one shard; it depends on nothing but its arguments and the images."""
    backbone = open_backbone(job.model, job.weights)
    rows = read_index(job.images)
    table = features.read_tiles(Path(job.folder))
    tiles = table[table["start"] // job.shard_slots == shard]
    arrays: dict[str, np.ndarray] = {}
    for batch, pixels in _batches(tiles, rows, job.batch):
        for name, values in _levels(backbone, pixels, job).items():
            if name not in arrays:
                shape = (job.shard_slots, values.shape[-1])
                arrays[name] = np.full(shape, np.nan, np.float16)
            for tile, found in zip(batch, values, strict=True):
                _check_finite(found, name, rows[tile["image"]])
                start = tile["start"] - shard * job.shard_slots
                arrays[name][start : start + len(found)] = found
    features.write_shard(Path(job.folder), Path(job.done), shard, arrays)


def _levels(backbone: Backbone, pixels: torch.Tensor, job: Job) -> dict[str, np.ndarray]:
    pixels = pixels.to(choose_device(job.device))
    found = half_tokens(backbone, pixels, job.levels)
    found["rgb"] = downsample(pixels, backbone.patch).half().cpu().numpy()
    return found


def _batches(
    tiles: np.ndarray, rows: list[ImageRow], size: int
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Batches of tiles of one shape with their pixels, the next one decoded while one is used."""
    groups = []
    for shape in np.unique(tiles[["height", "width"]]):
        same = tiles[tiles[["height", "width"]] == shape]
        groups += [same[i : i + size] for i in range(0, len(same), size)]
    with ThreadPoolExecutor(max_workers=2) as pool:
        ahead = [pool.submit(_pixels, group, rows) for group in groups[:2]]
        for number, group in enumerate(groups):
            pixels = ahead.pop(0).result()
            if number + 2 < len(groups):
                ahead.append(pool.submit(_pixels, groups[number + 2], rows))
            yield group, pixels


def _pixels(tiles: np.ndarray, rows: list[ImageRow]) -> torch.Tensor:
    """Pixels of tiles of one shape: float32 ``(B, 3, height, width)`` in [0, 1]."""
    return torch.from_numpy(
        np.stack(
            [
                read_tile(
                    rows[tile["image"]].path,
                    (tile["resized_h"], tile["resized_w"]),
                    (tile["top"], tile["left"], tile["height"], tile["width"]),
                    bool(tile["flip"]),
                )
                for tile in tiles
            ]
        )
    )


def _check_finite(values: np.ndarray, name: str, row: ImageRow) -> None:
    if not np.isfinite(values).all():
        raise ValueError(
            f"{row.path}: the features of {name} are NaN or beyond float16. Check the weights; "
            "a block whose values are that large can pass the final norm (`extract.final_norm`)."
        )


def open_backbone(model: str, weights: str | None) -> Backbone:
    """The frozen ViT with its facts; loaded once in each process."""
    loaded = load_backbone(model, weights)
    return Backbone(loaded, **facts(loaded))


def _table(rows: list[ImageRow], choices: params.ExtractParams, patch: int) -> np.ndarray:
    """The table of tiles of all images (dtype `features.TILE_FIELDS`), ``start`` still 0."""
    splits = list(dict.fromkeys(row.split for row in rows))
    found = [
        (row.id, splits.index(row.split), tile)
        for row in rows
        for tile in plan_tiles(
            row.height,
            row.width,
            patch=patch,
            short_side=choices.short_side,
            window=choices.window,
            stride=choices.stride,
            max_patches=choices.max_patches,
        )
    ]
    table = np.zeros(len(found), features.TILE_FIELDS)
    table["image"] = [image for image, _, _ in found]
    table["split"] = [split for _, split, _ in found]
    for name in Tile._fields:
        table[name] = [getattr(tile, name) for _, _, tile in found]
    table["grid_h"] = table["height"] // patch
    table["grid_w"] = table["width"] // patch
    return table


def _manifest(chosen: params.Params, rows: list[ImageRow], backbone: Backbone) -> dict:
    """What the cache is made from; its fingerprint covers images, weights and parameters."""
    choices = chosen.extract
    device = choose_device(chosen.compute.device)
    blocks = block_numbers(choices.blocks, backbone.depth)
    normed = block_numbers(choices.final_norm, backbone.depth)
    bfloat16 = choices.precision == "bfloat16" or (
        choices.precision == "auto" and hardware_bfloat16(device)
    )
    names = {str(n): f"block_{n:02d}" for n in blocks}
    for name in ("first", "middle", "last"):
        (number,) = block_numbers([name], backbone.depth)
        if number in blocks:
            names[name] = f"block_{number:02d}"
    if choices.keys:
        names["keys"] = "keys"
    width = int(backbone.model.num_features)  # type: ignore[arg-type]
    entry = chosen.backbones[chosen.backbone]
    facts_of_run = {
        "model": entry.model,
        "weights_sha256": weights_hash(backbone.model),
        "patch": backbone.patch,
        "mean": backbone.mean,
        "std": backbone.std,
        "levels": names,
        "normed": normed,
        "bfloat16": bfloat16,
        "splits": list(dict.fromkeys(row.split for row in rows)),
        "params": choices.model_dump(),
    }
    images = [(row.split, row.height, row.width, row.sha256) for row in rows]
    return {
        **facts_of_run,
        # Where the weights lay, for `predict`. The fingerprint has their digest instead.
        "weights": entry.weights,
        "images": len(rows),
        "channels": {name: width for name in dict.fromkeys(names.values())},
        "fingerprint": fingerprint(features.FORMAT, facts_of_run, images),
    }


if __name__ == "__main__":
    main()

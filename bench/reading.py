"""Reading the feature cache against memory maps; what writing it and its hashing by DVC take."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np

from bench.timing import Timing, machine, ratios, show, side_by_side
from cache import feature_writer, features
from cache.store.artefact import size
from pipeline.features.tiles import Layout, plan_layout

LEVELS = ("block_00", "block_06", "block_11")
DRAWN = 2  # shards of random values; the others repeat them


@click.command()
@click.option("--tiles", default=256, show_default=True, help="Tiles in the cache.")
@click.option("--grid", default=30, show_default=True, help="Patches along a side of a tile.")
@click.option("--channels", default=384, show_default=True, help="C of each of three levels.")
@click.option("--batch", default=16, show_default=True, help="Tiles in a shuffled batch.")
@click.option("--shard-tokens", default=32768, show_default=True, help="Slots in a shard.")
@click.option("--repeats", default=15, show_default=True, help="Timed runs of each reading case.")
@click.option("--writes", default=5, show_default=True, help="Timed runs of writing and hashing.")
@click.option("--folder", help="Where to write; the system's temporary folder without it.")
def main(
    tiles: int,
    grid: int,
    channels: int,
    batch: int,
    shard_tokens: int,
    repeats: int,
    writes: int,
    folder: str | None,
) -> None:
    """Time shuffled batches from the cache (float16, int8) and from memory maps, side by side.

    The memory maps (.npy files, one a level) hold the same values; both sides copy them into an
    array ``(patches, C)``, or ``(patches, 3C)`` of three levels. All files are in the page cache.
    """
    layout = plan_layout([grid * grid] * tiles, shard_tokens)
    generator = np.random.default_rng(0)
    shape = (DRAWN, layout.shard, channels)
    values = {name: generator.standard_normal(shape, np.float32).astype("f2") for name in LEVELS}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        root = Path(temporary)
        rows = _write(root, layout, grid, values, writes)
        rows += _hash(root, writes)
        rows += _read(root, batch, repeats)
    setting = {"tiles": tiles, "patches": grid**2, "channels": channels, "batch": batch}
    show("reading", {**machine(), **setting}, rows)


def _write(
    root: Path, layout: Layout, grid: int, values: dict[str, np.ndarray], repeats: int
) -> list[dict]:
    """Write memory maps and caches below ``root``; no case waits for the disk itself."""
    cases: dict[str, Callable[[], None]] = {
        "memmap": partial(_write_maps, root / "memmap", layout, values)
    }
    for dtype in ("float16", "int8"):
        cases[dtype] = partial(_write_cache, root / dtype, dtype, layout, grid, values)
    seconds = side_by_side(cases, repeats)
    return [
        _row(f"write {name}", found, seconds["memmap"], megabytes=size(root / name) / 1e6)
        for name, found in seconds.items()
    ]


def _write_maps(folder: Path, layout: Layout, values: dict[str, np.ndarray]) -> None:
    folder.mkdir(exist_ok=True)
    for name, drawn in values.items():
        shape = (layout.shards * layout.shard, drawn.shape[-1])
        with open(folder / f"{name}.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f2", "fortran_order": False, "shape": shape}
            )
            for shard in range(layout.shards):
                file.write(drawn[shard % DRAWN])


def _write_cache(
    folder: Path, dtype: str, layout: Layout, grid: int, values: dict[str, np.ndarray]
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    store, done = folder / "features.zarr", folder / "done"
    folder.mkdir()
    table = np.zeros(len(layout.starts), features.TILE_FIELDS)
    table["start"], table["grid_h"], table["grid_w"] = layout.starts, grid, grid
    channels = {name: drawn.shape[-1] for name, drawn in values.items()}
    colours = np.zeros((layout.shard, 3), np.float16)
    for shard in feature_writer.declare(
        store, done, {**channels, "rgb": 3}, dtype, table, *layout[1:]
    ):
        arrays = {name: drawn[shard % DRAWN] for name, drawn in values.items()}
        feature_writer.write_shard(store, done, shard, {**arrays, "rgb": colours})
    names = {name: name for name in LEVELS}
    manifest = {"levels": names, "channels": channels, "fingerprint": ""}
    feature_writer.finish(store, done, layout.shards, manifest)


def _hash(root: Path, repeats: int) -> list[dict]:
    """Time what DVC adds once a folder is written: hashes and links; MD5 alone beside it."""
    cases: dict[str, Callable[[], None]] = {}
    for name in ("memmap", "float16", "int8"):
        cases[f"dvc add {name}"] = partial(_dvc_add, root, name)
        cases[f"md5 {name}"] = partial(_md5, root / name)
    return [_row(name, found) for name, found in side_by_side(cases, repeats).items()]


def _dvc_add(root: Path, name: str) -> None:
    """Add the folder to an empty repository, with this project's choice of links."""
    from dvc.repo import Repo  # slow to import

    with tempfile.TemporaryDirectory(dir=root) as folder:
        place = patch.dict(os.environ, DVC_SITE_CACHE_DIR=f"{folder}/site")
        with place, Repo.init(folder, no_scm=True) as repo:
            with repo.config.edit() as config:
                config["cache"]["type"] = ["reflink", "hardlink", "symlink", "copy"]
            repo.add(shutil.move(root / name, f"{folder}/{name}"))
        shutil.move(f"{folder}/{name}", root / name)


def _md5(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                hashlib.file_digest(file, "md5")


def _read(root: Path, batch: int, repeats: int) -> list[dict]:
    rows = []
    for levels in (LEVELS[:1], LEVELS):
        cases = {"memmap": _map_batches(root / "memmap", root / "float16", levels, batch)}
        for dtype in ("float16", "int8"):
            cases[dtype] = _cache_batches(root / dtype, levels, batch)
        if not np.array_equal(next(cases["memmap"]), next(cases["float16"])):
            raise RuntimeError("the memory map and the cache must give the same batch")
        next(cases["int8"])
        seconds = side_by_side({name: partial(next, case) for name, case in cases.items()}, repeats)
        rows += [
            _row(f"read {name}, {len(levels)} level(s)", found, seconds["memmap"])
            for name, found in seconds.items()
        ]
    return rows


def _shuffled(tiles: int, batch: int) -> Iterator[np.ndarray]:
    """Ids of the tiles of each batch, the same ones in every case."""
    generator = np.random.default_rng(0)
    while True:
        yield generator.choice(tiles, batch, replace=False)


def _cache_batches(folder: Path, levels: Sequence[str], batch: int) -> Iterator[np.ndarray]:
    opened = features.Features.open(folder / "features.zarr")
    for tiles in _shuffled(len(opened.tiles), batch):
        yield opened.batch(levels, tiles)


def _map_batches(
    folder: Path, cache: Path, levels: Sequence[str], batch: int
) -> Iterator[np.ndarray]:
    maps = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in levels]
    table = features.read_tiles(cache / "features.zarr")
    size = int(table["grid_h"][0] * table["grid_w"][0])
    width = maps[0].shape[1]
    for tiles in _shuffled(len(table), batch):
        values = np.empty((batch * size, len(maps) * width), np.float16)
        for row, start in enumerate(table["start"][tiles].tolist()):
            for column, stored in enumerate(maps):
                values[row * size : (row + 1) * size, column * width : (column + 1) * width] = (
                    stored[start : start + size]
                )
        yield values


def _row(
    case: str, seconds: list[float], memmap: list[float] | None = None, **more: float
) -> dict[str, Any]:
    row: dict[str, Any] = {"case": case, "seconds": Timing.of(seconds), **more}
    if memmap is not None:
        row["times the memory map"] = ratios(seconds, memmap)
    return row


if __name__ == "__main__":
    main()

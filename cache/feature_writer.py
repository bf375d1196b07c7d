"""The feature cache, written shard by shard; `cache.features` reads it and tells its layout."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from cache.features import FIT, FORMAT, TILE_FIELDS, digest, read_fit, read_tiles, scale_array
from cache.store import int8, tensors
from cache.store.artefact import read_marker, write_json, write_manifest
from cache.store.errors import InputError
from cache.store.shards import Shards, is_whole, layout_fingerprint, mark_whole, shard_file


def declare(
    folder: Path,
    done: Path,
    channels: Mapping[str, int],
    dtype: str,
    tiles: np.ndarray,
    chunk: int,
    shard: int,
    shards: int,
) -> list[int]:
    """Create the arrays and the table of tiles, unless a former run did; the shards still to do.

    Args:
        done: folder of the markers of finished shards; where it exists, the arrays do.
        channels: C of each array; none for a cache without levels.
        dtype: float16 or int8, of all arrays but ``rgb``, which is float16.
        tiles: the table, dtype `TILE_FIELDS`.
        chunk: slots in a chunk, what one read fetches.
        shard: slots in a shard, what one job writes.
        shards: number of shards.
    """
    marker = done.with_name("layout.json")
    if not done.is_dir() or read_marker(marker) != layout_fingerprint(folder):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(done, ignore_errors=True)
        _create(folder, channels, dtype, chunk, shard, shards)
        _write_tiles(folder, tiles)
        done.mkdir()
        write_json(marker, layout_fingerprint(folder))
    _write_tiles(folder, tiles)  # whatever a former run left of it
    return [n for n in range(shards) if not is_whole(done / f"{n}.json", folder, read=True)]


def _create(
    folder: Path,
    channels: Mapping[str, int],
    dtype: str,
    chunk: int,
    shard: int,
    shards: int,
) -> None:
    group = zarr.open_group(folder, mode="a")
    for name, width in channels.items():
        stored = "float16" if name == "rgb" else dtype
        _create_array(group, name, stored, (shards * shard, width), chunk, shard)
        if stored == "int8":
            shape = (shards * shard // chunk, width)
            _create_array(group, scale_array(name), "float32", shape, 1, shard // chunk)


def _write_tiles(folder: Path, tiles: np.ndarray) -> None:
    table = zarr.open_group(folder, mode="a").require_group("tiles")
    for name in TILE_FIELDS.names or ():
        table.create_array(name, data=tiles[name], overwrite=True)


def _create_array(
    group: zarr.Group, name: str, dtype: str, shape: tuple[int, int], chunk: int, shard: int
) -> None:
    group.create_array(
        name,
        shape=shape,
        chunks=(chunk, shape[1]),
        shards=(shard, shape[1]),
        dtype=dtype,
        fill_value=0 if dtype == "int8" else np.nan,
        compressors=[Crc32cCodec()],  # features hardly compress; a flipped bit is found
        overwrite=True,
    )


def write_shard(folder: Path, done: Path, shard: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Write one whole shard of every array, then the marker that says so.

    Args:
        done: folder of the markers.
        arrays: float16 ``(slots of a shard, C)`` each, NaN where no tile lies.
    """
    files = []
    for name, values in arrays.items():
        array = Shards(folder, name)
        written = {name: values}
        if array.dtype == np.int8:
            written[name], written[scale_array(name)] = int8.encode(values, array.chunk)
        for part, content in written.items():
            Shards(folder, part).write(shard, content)
            files.append(shard_file(folder, part, shard))
    mark_whole(done / f"{shard}.json", folder, files)


def finish(folder: Path, done: Path, shards: int, manifest: Mapping[str, Any]) -> None:
    """Prove that every shard is there, sweep what kills left behind, write the manifest.

    Raises:
        InputError: a shard is missing.
    """
    missing = [n for n in range(shards) if not is_whole(done / f"{n}.json", folder, read=False)]
    if missing:
        raise InputError(f"{folder} lacks the shards {missing}: run the same command again.")
    for stale in folder.rglob("*.partial*"):
        stale.unlink()
    digests = {"tiles": digest(read_tiles(folder)), "layout": layout_fingerprint(folder)}
    if (folder / FIT).exists():
        digests["fit"] = tensors.read(folder / FIT)[2]
    write_manifest(folder / "manifest.json", {"format": FORMAT, **manifest, **digests})


def write_fit(folder: Path, values: Mapping[str, Any]) -> None:
    """Write the arrays and scalars that a derived level was made with, beside its shards."""
    tensors.write(folder / FIT, tensors.pack(values), {})


def fit_finished(folder: Path) -> bool:
    """Tell whether `write_fit` has written its file, and it is whole."""
    try:
        return read_fit(folder) is not None
    except InputError:
        return False

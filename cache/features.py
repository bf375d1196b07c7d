"""The feature cache: tokens of every tile in sharded Zarr arrays, with a table of tiles.

Layout of the folder: one array ``(slots, C)`` per level (``block_<n>``, ``keys``, ``rgb``), the
table of tiles as one-dimensional arrays below ``tiles/``, and ``manifest.json``, written last: a
folder without it is incomplete. A tile occupies consecutive slots from its ``start``; slots between
tiles hold NaN.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from cache.artefact import read_json, write_json
from cache.errors import InputError

FORMAT = 1
TILE_FIELDS = np.dtype(
    [(name, "i8") for name in ("image", "split", "top", "left", "height", "width")]
    + [(name, "i8") for name in ("grid_h", "grid_w", "resized_h", "resized_w", "start")]
    + [("scale", "f8"), ("flip", "?")]
)


def declare(
    folder: Path,
    done: Path,
    channels: Mapping[str, int],
    tiles: np.ndarray,
    chunk: int,
    shard: int,
    shards: int,
) -> list[int]:
    """Create the arrays and the table of tiles, unless a former run did; the shards still to do.

    Args:
        done: folder of the markers of finished shards; where it exists, the arrays do.
        channels: C of each array; all are float16.
        tiles: the table, dtype `TILE_FIELDS`.
        chunk: slots in a chunk, what one read fetches.
        shard: slots in a shard, what one job writes.
        shards: number of shards.
    """
    if not (done.is_dir() and folder.is_dir()):
        shutil.rmtree(folder, ignore_errors=True)
        _create(folder, channels, tiles, chunk, shard, shards)
        done.mkdir(exist_ok=True)
    return [number for number in range(shards) if not shard_finished(folder, done, number)]


def _create(
    folder: Path,
    channels: Mapping[str, int],
    tiles: np.ndarray,
    chunk: int,
    shard: int,
    shards: int,
) -> None:
    group = zarr.open_group(folder, mode="a")
    for name, width in channels.items():
        group.create_array(
            name,
            shape=(shards * shard, width),
            chunks=(chunk, width),
            shards=(shard, width),
            dtype="float16",
            fill_value=np.nan,
            compressors=[Crc32cCodec()],  # float16 features hardly compress; a flipped bit is found
            config={"write_empty_chunks": True},
            overwrite=True,
        )
    table = group.require_group("tiles")
    for name in TILE_FIELDS.names or ():
        table.create_array(name, data=tiles[name], overwrite=True)


def read_tiles(folder: Path) -> np.ndarray:
    """The table of tiles, dtype `TILE_FIELDS`."""
    table = zarr.open_group(folder, mode="r", path="tiles")
    columns = {name: np.asarray(table[name]) for name in TILE_FIELDS.names or ()}
    tiles = np.empty(len(columns["image"]), TILE_FIELDS)
    for name, column in columns.items():
        tiles[name] = column
    return tiles


def write_shard(folder: Path, done: Path, shard: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Write one whole shard of every array, then the marker that says so.

    Args:
        done: folder of the markers.
        arrays: float16 ``(slots of a shard, C)`` each, NaN where no tile lies.
    """
    group = zarr.open_group(folder, mode="r+")
    for name, values in arrays.items():
        # Zarr reads a shard before it writes over it, and would stop at one that is torn.
        _shard_file(folder, name, shard).unlink(missing_ok=True)
        group[name][shard * len(values) : (shard + 1) * len(values)] = values  # type: ignore[index]
    sizes = {name: _shard_file(folder, name, shard).stat().st_size for name in arrays}
    write_json(done / f"{shard}.json", sizes)


def shard_finished(folder: Path, done: Path, shard: int) -> bool:
    """Whether a shard was written whole: its marker is there and the files have their sizes."""
    try:
        sizes = json.loads((done / f"{shard}.json").read_text())
        return all(
            _shard_file(folder, name, shard).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError):
        return False


def _shard_file(folder: Path, name: str, shard: int) -> Path:
    return folder / name / "c" / str(shard) / "0"


def finish(folder: Path, done: Path, shards: int, manifest: Mapping[str, Any]) -> None:
    """Prove that every shard is there, sweep what kills left behind, write the manifest.

    Raises:
        InputError: a shard is missing.
    """
    missing = [shard for shard in range(shards) if not shard_finished(folder, done, shard)]
    if missing:
        raise InputError(f"{folder} lacks the shards {missing}: run `eigenseg extract` again.")
    for stale in folder.rglob("*.partial*"):
        stale.unlink()
    write_json(folder / "manifest.json", {"format": FORMAT, **manifest})


class Features:
    """A complete feature cache, opened for reading.

    Attributes:
        manifest: what it was made from: ``model``, ``patch`` (px), ``levels`` (name -> array),
            ``channels`` (array -> C), ``splits``, ``fingerprint``, ``params``.
        tiles: the table of tiles, dtype `TILE_FIELDS`; lengths in px of the resized image,
            ``grid_*`` in patches, ``split`` as position in ``manifest["splits"]``.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], tiles: np.ndarray) -> None:
        self.path = path
        self.manifest = manifest
        self.tiles = tiles
        self._arrays = {name: zarr.open_array(path, path=name, mode="r") for name in self._names()}

    def _names(self) -> list[str]:
        return [*self.manifest["channels"], "rgb"]

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a cache.

        Raises:
            InputError: it is missing, incomplete, or of another version of the format.
        """
        path = Path(path)
        way_out = "run `eigenseg extract` (or `dvc repro extract`) first."
        if not path.is_dir():
            raise InputError(f"the feature cache {path} is missing: {way_out}")
        if not (path / "manifest.json").is_file():
            raise InputError(f"the feature cache {path} is incomplete (no manifest): {way_out}")
        manifest = read_json(path / "manifest.json", way_out)
        if manifest.get("format") != FORMAT:
            raise InputError(
                f"{path} has format {manifest.get('format')}, "
                f"this version reads {FORMAT}: {way_out}"
            )
        try:
            tiles = read_tiles(path)
            return cls(path, manifest, tiles)
        except Exception as error:  # zarr raises many types for a broken store
            raise InputError(f"the feature cache {path} is damaged ({error}): {way_out}") from error

    def array(self, level: int | str) -> str:
        """Name of the array that holds a level.

        Raises:
            InputError: the cache does not hold that level.
        """
        levels = self.manifest["levels"]
        if str(level) not in levels:
            raise InputError(
                f"{self.path} holds the levels {', '.join(levels)}, not {level}: add it to "
                "`extract.blocks` (or set `extract.keys`) and run `dvc repro`, or choose another "
                "for `graph.level`, `head.levels` and `kmeans.level`."
            )
        return levels[str(level)]

    def channels(self, level: int | str) -> int:
        """C of a level."""
        return self.manifest["channels"][self.array(level)]

    def tiles_of(self, split: str) -> np.ndarray:
        """Ids of the tiles of one split, int64, in order.

        Raises:
            InputError: the cache does not hold that split.
        """
        splits = self.manifest["splits"]
        if split not in splits:
            raise InputError(
                f"{self.path} holds the splits {', '.join(splits)}, not {split}: correct "
                "`datasets.<name>.train` and `.eval`, or run `dvc repro` again."
            )
        return np.flatnonzero(self.tiles["split"] == splits.index(split))

    def size(self, tile: int) -> int:
        """Patches of a tile."""
        row = self.tiles[tile]
        return int(row["grid_h"] * row["grid_w"])

    def sizes(self, tiles: Sequence[int] | np.ndarray) -> list[int]:
        """Patches of each of these tiles."""
        return [self.size(tile) for tile in tiles]

    def tokens(self, level: int | str, tile: int) -> np.ndarray:
        """Tokens of a tile: float16 ``(patches, C)``, rows of the grid one after the other."""
        return self._read(self.array(level), tile)

    def rgb(self, tile: int) -> np.ndarray:
        """Colours at the patch grid: float32 ``(patches, 3)`` in [0, 1]."""
        return self._read("rgb", tile).astype(np.float32)

    def _read(self, name: str, tile: int) -> np.ndarray:
        start = int(self.tiles[tile]["start"])
        way_out = f"delete {self.path} and run `dvc repro extract`."
        try:
            values = np.asarray(self._arrays[name][start : start + self.size(tile)])
        except Exception as error:  # zarr and its codecs raise many types for damaged bytes
            raise InputError(
                f"{self.path}: a shard of {name} is damaged at tile {tile} ({error}): {way_out}"
            ) from error
        if not np.isfinite(values).all():
            raise InputError(
                f"{self.path}: {name} has NaN or infinite values, or a missing shard, at tile "
                f"{tile}: {way_out}"
            )
        return values

"""The feature cache: tokens of every tile in sharded Zarr arrays, with a table of tiles. Reading.

Layout of the folder: one array ``(slots, C)`` per level (``block_<n>``, ``keys``, ``rgb``), the
table of tiles as one-dimensional arrays below ``tiles/``, and ``manifest.json``, written last: a
folder without it is incomplete. A tile occupies consecutive slots from its ``start``, which is the
start of a chunk; slots between tiles hold NaN. Of an int8 array ``<level>_scale`` ``(chunks, C)``
holds the scales, in shards of the same number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr

from cache.index import ImageRow, images_fingerprint
from cache.store import int8, tensors
from cache.store.artefact import (
    fingerprint,
    read_manifest,
)
from cache.store.errors import InputError
from cache.store.shards import Shards, finite, layout_fingerprint

FORMAT = 6
# What reading a damaged store raises: Zarr, its codecs and JSON have no error in common.
DAMAGE = (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError)
FIT = "fit.safetensors"  # what a derived level was made with
TILE_FIELDS = np.dtype(
    [(name, "i8") for name in ("image", "split", "view", "top", "left", "height", "width")]
    + [(name, "i8") for name in ("grid_h", "grid_w", "resized_h", "resized_w", "start")]
    + [("flip", "?")]
)


def digest(tiles: np.ndarray) -> str:
    """SHA-256 of a table of tiles: Zarr reads what is missing of it as zeros, without a word."""
    return hashlib.sha256(np.ascontiguousarray(tiles).tobytes()).hexdigest()


def scale_array(name: str) -> str:
    """Name of the array that holds the scales of an int8 array."""
    return f"{name}_scale"


def read_tiles(folder: Path) -> np.ndarray:
    """The table of tiles, dtype `TILE_FIELDS`."""
    table = zarr.open_group(folder, mode="r", path="tiles")
    columns = {name: np.asarray(table[name]) for name in TILE_FIELDS.names or ()}
    tiles = np.empty(len(columns["image"]), TILE_FIELDS)
    for name, column in columns.items():
        tiles[name] = column
    return tiles


def read_fit(folder: str | Path, sha256: str | None = None) -> dict[str, Any] | None:
    """Read what `write_fit` wrote.

    Args:
        sha256: the digest that the manifest names; None = any, or no file, before there is one.

    Raises:
        InputError: the file is damaged, missing or another.
    """
    path = Path(folder) / FIT
    if sha256 is None and not path.exists():
        return None
    try:
        values, _, found = tensors.read(path)
        if found != (sha256 or found):
            raise InputError("it belongs to another cache than the manifest")
        return tensors.unpack(values)
    except tensors.DAMAGE as error:
        raise InputError(
            f"{path} is damaged ({error}): delete {folder} and run `dvc repro context`."
        ) from error


class Features:
    """A complete feature cache, opened for reading.

    Attributes:
        manifest: what it was made from: ``model``, ``patch`` (px), ``levels`` (name -> array),
            ``channels`` (array -> C), ``splits``, ``fingerprint``, ``params``.
        tiles: the table of tiles, dtype `TILE_FIELDS`; lengths in px of the resized image,
            ``grid_*`` in patches, ``split`` as position in ``manifest["splits"]``, ``view`` the
            number of the view to train on, -1 for a tile of the image as it is.
        fingerprint: of all levels that can be read.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], tiles: np.ndarray, stage: str) -> None:
        self.path, self.manifest, self.tiles = path, manifest, tiles
        self.fingerprint: str = manifest["fingerprint"]
        self._levels: dict[str, str] = manifest["levels"]
        self._arrays = {name: Shards(path, name) for name in manifest["channels"]}
        self._scales = {
            name: Shards(path, scale_array(name))
            for name, array in self._arrays.items()
            if array.dtype == np.int8
        }
        self._made_by = dict.fromkeys(self._arrays, (path, stage))
        self._fit = path, manifest.get("fit")

    @classmethod
    def open(cls, path: str | Path, stage: str = "extract") -> Self:
        """Open a cache that a stage has written.

        Raises:
            InputError: it is missing, incomplete, or of another version of the format.
        """
        path = Path(path)
        way_out = f"run `eigenseg {stage}` (or `dvc repro {stage}`) first."
        if not path.is_dir():
            raise InputError(f"the feature cache {path} is missing: {way_out}")
        if not (path / "manifest.json").is_file():
            raise InputError(f"the feature cache {path} is incomplete (no manifest): {way_out}")
        again = f"delete {path} and run `dvc repro {stage}`."
        manifest = read_manifest(path / "manifest.json", again)
        if manifest.get("format") != FORMAT:
            raise InputError(
                f"{path} has format {manifest.get('format')}, "
                f"this version reads {FORMAT}: {way_out}"
            )
        try:
            if layout_fingerprint(path) != manifest["layout"]:
                raise ValueError("the metadata of its arrays differ")
            opened = cls(path, manifest, read_tiles(path), stage)
            if digest(opened.tiles) != manifest["tiles"]:
                raise ValueError("its table of tiles differs")
        except DAMAGE as error:
            raise InputError(f"{path} is damaged ({error!r}): {again}") from error
        return opened

    def beside(self, path: str | Path, stage: str = "context") -> Self:
        """The same cache with the levels of a second one, made from it, as if they were its own.

        Raises:
            InputError: as `open`; or the second one was made from another cache.
        """
        other = type(self).open(path, stage)
        if other.manifest["features"] != self.manifest["fingerprint"]:
            raise InputError(
                f"{path} was made from another feature cache ({other.manifest['features']}, "
                f"{self.path} is {self.manifest['fingerprint']}): run `dvc repro {stage}` (or "
                f"`eigenseg {stage}`) again."
            )
        both = copy(self)
        both.fingerprint = fingerprint(self.fingerprint, other.fingerprint)
        both._fit = other._fit
        for name in ("_levels", "_arrays", "_scales", "_made_by"):
            setattr(both, name, {**getattr(other, name), **getattr(self, name)})
        return both

    def array(self, level: int | str) -> str:
        """Name of the array that holds a level.

        Raises:
            InputError: the cache does not hold that level.
        """
        if str(level) not in self._levels:
            raise InputError(
                f"{self.path} holds the levels {', '.join(self._levels)}, not {level}: add it to "
                "`extract.blocks` (or set `extract.keys`) and run `dvc repro`, or choose another "
                "for `backbones.<name>.context`, `graph.level`, `head.levels` and `kmeans.level`."
            )
        return self._levels[str(level)]

    def channels(self, level: int | str) -> int:
        """C of a level.

        Raises:
            InputError: the cache does not hold that level.
        """
        return self._arrays[self.array(level)].channels

    def fit(self) -> dict[str, Any] | None:
        """Read what the levels of the second cache were made with (`write_fit`); None without any.

        Raises:
            InputError: it is damaged or missing.
        """
        folder, digest = self._fit
        return read_fit(folder, digest) if digest else None

    def layout(self) -> tuple[int, int, int]:
        """Slots in a chunk and in a shard, and the number of shards."""
        array = next(iter(self._arrays.values()))
        shard = array.chunk * array.chunks_in_shard
        return array.chunk, shard, array.slots // shard

    def check_images(self, rows: Sequence[ImageRow], index: str | Path) -> None:
        """Raise InputError unless the rows of an index are the images of this cache."""
        if images_fingerprint(rows) != self.manifest["index"]:
            raise InputError(
                f"{index} and {self.path} must hold the same images in the same order, found "
                f"others among {len(rows)}: run `dvc repro` (or `eigenseg extract`)."
            )

    def tiles_of(self, split: str, views: Sequence[int] = (-1,)) -> np.ndarray:
        """Ids of the tiles of these views of one split, int64, in order.

        Raises:
            InputError: the cache does not hold that split.
        """
        splits = self.manifest["splits"]
        if split not in splits:
            raise InputError(
                f"{self.path} holds the splits {', '.join(splits)}, not {split}: correct "
                "`datasets.<name>.train` and `.eval`, or run `dvc repro` again."
            )
        own = self.tiles["split"] == splits.index(split)
        return np.flatnonzero(own & np.isin(self.tiles["view"], views))

    def tiles_of_image(self, image: int, view: int = -1) -> list[int]:
        """Ids of the tiles of one view of an image, in the order of its plan."""
        own = (self.tiles["image"] == image) & (self.tiles["view"] == view)
        return np.flatnonzero(own).tolist()

    @property
    def views(self) -> range:
        """Numbers of the views to train on: -1 alone where none were drawn."""
        return range(int(self.tiles["view"].max(initial=-1)) + 1) or range(-1, 0)

    def training_tiles(self, split: str) -> np.ndarray:
        """Ids of the tiles of all views to train on; as `tiles_of`."""
        return self.tiles_of(split, self.views)

    def size(self, tile: int) -> int:
        """Patches of a tile."""
        return self.sizes([tile])[0]

    def sizes(self, tiles: Sequence[int] | np.ndarray) -> list[int]:
        """Patches of each of these tiles."""
        rows = self.tiles[np.asarray(tiles, np.int64)]
        return (rows["grid_h"].astype(np.int64) * rows["grid_w"]).tolist()

    def tokens(self, level: int | str, tile: int) -> np.ndarray:
        """Tokens of a tile: float16 ``(patches, C)``, rows of the grid one after the other."""
        return self.batch([level], [tile])

    def batch(self, levels: Sequence[int | str], tiles: Sequence[int] | np.ndarray) -> np.ndarray:
        """Tokens of some tiles: float16 ``(patches, C)``, tile after tile, levels side by side."""
        return self._read([self.array(level) for level in levels], tiles)

    def image(self, level: int | str, image: int, view: int = -1) -> np.ndarray:
        """Tokens of an image that is one tile: float16 ``(rows, columns, C)``.

        Args:
            image: its id, the number of its row in the index.
            view: -1 for the first protocol, -2 for the second; 0, 1, ... for views to train on.

        Raises:
            InputError: there is no such image, or it is cut into several tiles.
        """
        tiles = self.tiles_of_image(image, view)
        if len(tiles) != 1:
            last = int(self.tiles["image"].max(initial=-1))
            found = f"it in {len(tiles)} tiles" if tiles else f"no image {image}, only 0 to {last}"
            raise InputError(
                f"{self.path} must hold image {image} as one tile of view {view}, found {found}: "
                "take another, or read tiles one by one (`tiles_of_image`, `tokens`)."
            )
        row = self.tiles[tiles[0]]
        return self.tokens(level, tiles[0]).reshape(int(row["grid_h"]), int(row["grid_w"]), -1)

    def rgb(self, tile: int) -> np.ndarray:
        """Colours at the patch grid: float32 ``(patches, 3)`` in [0, 1]."""
        return self._read(["rgb"], [tile]).astype(np.float32)

    def _read(self, names: Sequence[str], tiles: Sequence[int] | np.ndarray) -> np.ndarray:
        rows = np.cumsum([0, *self.sizes(tiles)])
        columns = np.cumsum([0, *(self._arrays[name].channels for name in names)])
        values = np.empty((rows[-1], columns[-1]), np.float16)
        for tile, (top, bottom) in zip(tiles, pairwise(rows), strict=True):
            for name, (left, right) in zip(names, pairwise(columns), strict=True):
                self._fill(values[top:bottom, left:right], name, tile)
        return values

    def _fill(self, values: np.ndarray, name: str, tile: int) -> None:
        """Read one array's tokens of a tile into ``values``, float16 ``(patches, C)``."""
        chunk = self._arrays[name].chunk
        number = int(self.tiles[tile]["start"]) // chunk
        fault = None
        try:
            for first in range(0, len(values), chunk):
                rows = values[first : first + chunk]
                tokens = self._chunk(name, number + first // chunk)[: len(rows)]
                if not finite(tokens):
                    fault = f"{name} has NaN or infinite values at tile {tile}"
                rows[...] = tokens
        except FileNotFoundError:
            fault = f"{name} lacks the shard that holds tile {tile}"
        except (OSError, ValueError) as error:
            fault = f"a shard of {name} is damaged at tile {tile} ({error})"
        if fault:
            path, stage = self._made_by[name]
            raise InputError(f"{path}: {fault}: delete {path} and run `dvc repro {stage}`.")

    def _chunk(self, name: str, number: int) -> np.ndarray:
        """One chunk of an array: float16 ``(chunk, C)``."""
        values = self._arrays[name].read(number)
        if name in self._scales:
            return int8.decode(values, self._scales[name].read(number))
        return values

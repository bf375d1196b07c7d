"""The graph file: nearest neighbours of patches and pixel graphs of tiles, in one HDF5 file.

``/groups/<round>/<group>`` holds ``tiles`` (ids, in the order of the patches) and, with scope
group, the neighbours of their patches. With scope dataset, ``/neighbours/<block>`` holds those of a
run of patches, numbered through in the order of ``/tiles/ids``. ``/pixels/<part>`` holds the pixel
graphs of a run of tiles. With scope batch the file holds the manifest alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from cache.store import parts
from cache.store.errors import InputError

FORMAT = 4


class Neighbours(NamedTuple):
    """The k nearest neighbours of n patches: the directed graph A of Eq. 2, row by row.

    Attributes:
        indices: int64 ``(n, k)``, -1 for none.
        cosines: float32 ``(n, k)``.
    """

    indices: np.ndarray
    cosines: np.ndarray


class GroupGraph(NamedTuple):
    """The neighbours of the patches of one group.

    Attributes:
        tiles: ids, int64, in the order of the patches.
        neighbours: indices count the patches of the group; with ``firsts`` those of the whole
            split, so that some lie outside of the group.
        firsts: number of the first patch of each tile in the split; None for graphs of groups.
    """

    tiles: np.ndarray
    neighbours: Neighbours
    firsts: np.ndarray | None = None


def write_groups(
    folder: Path,
    name: str,
    groups: Mapping[tuple[int, int], Sequence[int] | np.ndarray],
    neighbours: Neighbours | None = None,
) -> None:
    """Write the tiles of groups, by round and number, as a part; with the neighbours of a group."""
    with parts.write_part(folder, name) as file:
        for (round_, number), tiles in groups.items():
            group = file.create_group(f"groups/{round_}/{number}")
            parts.dataset(group, "tiles", np.asarray(tiles, np.int64))
            if neighbours is not None:
                _write_neighbours(group, neighbours)


def write_neighbours(folder: Path, name: str, block: int, neighbours: Neighbours) -> None:
    """Write the neighbours of one block of patches as a part."""
    with parts.write_part(folder, name) as file:
        _write_neighbours(file.create_group(f"neighbours/{block}"), neighbours)


def read_neighbours(folder: Path, name: str, block: int) -> np.ndarray:
    """Read the indices, int64 ``(n, k)``, of a part of `write_neighbours`."""
    with parts.read_part(folder, name) as file:
        return _indices(file[f"neighbours/{block}"], 0, None)


def write_tiles(
    folder: Path, name: str, tiles: np.ndarray, sizes: Sequence[int], blocks: np.ndarray
) -> None:
    """Write the numbering of patches as a part: tiles in order, patches and block of each."""
    with parts.write_part(folder, name) as file:
        group = file.create_group("tiles")
        parts.dataset(group, "ids", np.asarray(tiles, np.int64))
        parts.dataset(group, "sizes", np.asarray(sizes, np.int64))
        parts.dataset(group, "blocks", np.asarray(blocks, np.int64))


def _write_neighbours(group: h5py.Group, neighbours: Neighbours) -> None:
    """Write indices, shifted by 1, in the smallest unsigned type, and cosines in float16."""
    shifted = neighbours.indices + 1
    smallest = np.min_scalar_type(int(shifted.max(initial=0)))
    parts.dataset(group, "indices", shifted.astype(smallest))
    parts.dataset(group, "cosines", neighbours.cosines.astype(np.float16))


def _indices(group: h5py.Group, start: int, stop: int | None) -> np.ndarray:
    return parts.read(group["indices"], start, stop).astype(np.int64) - 1


def write_pixels(
    folder: Path,
    name: str,
    tiles: Sequence[int],
    graphs: Sequence[tuple[np.ndarray, np.ndarray]],
) -> None:
    """Write the pixel graphs of some tiles, ``(indptr, indices)`` each, as a part."""
    with parts.write_part(folder, name) as file:
        group = file.create_group(f"pixels/{name}")
        parts.dataset(group, "tiles", np.asarray(tiles, np.int64))
        lengths = [(len(indptr), len(indices)) for indptr, indices in graphs]
        parts.dataset(group, "lengths", np.asarray(lengths, np.int64))
        parts.dataset(group, "indptr", np.concatenate([indptr for indptr, _ in graphs]))
        parts.dataset(group, "indices", np.concatenate([indices for _, indices in graphs]))


class _Place(NamedTuple):
    """Rows of a tile: block, first row in it, number of the first patch, patches."""

    block: int
    row: int
    first: int
    size: int


class Graphs(parts.Assembled):
    """A complete graph file, opened for reading.

    Attributes:
        manifest: what it was made from: ``features`` (fingerprint of the cache), ``scope``, ``k``,
            ``level``, ``pixel``, ``rounds``, ``groups`` (in each round, or batches of an epoch),
            ``fingerprint``.

    Raises:
        InputError: the file is missing, half-written, damaged or of another version of the format.
    """

    stage = "graph"
    format = FORMAT

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._where: dict[int, tuple[str, int, int, int, int]] = {}
        for name in self.node("pixels") if self.manifest["scope"] != "batch" else ():
            group = self.node(f"pixels/{name}")
            lengths = parts.read(group["lengths"])
            starts = np.concatenate([[[0, 0]], np.cumsum(lengths, axis=0)[:-1]])
            for tile, (p, e), (dp, de) in zip(
                parts.read(group["tiles"]), starts, lengths, strict=True
            ):
                self._where[int(tile)] = (name, int(p), int(p + dp), int(e), int(e + de))
        self._places = self._numbering() if self.manifest["scope"] == "dataset" else {}

    def _numbering(self) -> dict[int, _Place]:
        group = self.node("tiles")
        ids, sizes, blocks = (parts.read(group[name]) for name in ("ids", "sizes", "blocks"))
        firsts = np.cumsum(sizes) - sizes
        rows = firsts - firsts[np.searchsorted(blocks, blocks)]  # from the first tile of the block
        columns = (blocks, rows, firsts, sizes)
        return {
            int(tile): _Place(*map(int, place)) for tile, *place in zip(ids, *columns, strict=True)
        }

    def check(self, features: str, split: str, rounds: int) -> None:
        """Raise InputError unless the graph is of this cache and split, with rounds enough.

        Args:
            features: fingerprint of the cache.
            split: name of the training split.
            rounds: that the epochs of training take in turn, where groups are stored.
        """
        if self.manifest["features"] != features:
            raise InputError(
                f"{self.path} was made from another feature cache ({self.manifest['features']}, "
                f"the cache is {features}): run `dvc repro graph` (or `eigenseg graph`) again."
            )
        if self.manifest["split"] != split:
            raise InputError(
                f"{self.path} must be of split {split}, found {self.manifest['split']}: run `dvc "
                "repro graph` (or `eigenseg graph`) again."
            )
        if 0 < self.manifest["rounds"] < rounds:
            raise InputError(
                f"{self.path} must hold {rounds} rounds of groups for train.epochs, found "
                f"{self.manifest['rounds']}: run `dvc repro graph` (or `eigenseg graph`) again."
            )

    def group(self, round_: int, group: int) -> GroupGraph:
        """Read the neighbours of the patches of one group."""
        node = self.node(f"groups/{round_}/{group}")
        tiles = parts.read(node["tiles"])
        if not self._places:
            return GroupGraph(tiles, self._rows(node, 0, None))
        places = [self._places[int(tile)] for tile in tiles]
        rows = [
            self._rows(self.node(f"neighbours/{p.block}"), p.row, p.row + p.size) for p in places
        ]
        joined = Neighbours(*(np.concatenate(part) for part in zip(*rows, strict=True)))
        return GroupGraph(tiles, joined, np.array([place.first for place in places]))

    def _rows(self, node: h5py.Group, start: int, stop: int | None) -> Neighbours:
        cosines = parts.read(node["cosines"], start, stop).astype(np.float32)
        return Neighbours(_indices(node, start, stop), cosines)

    def pixel_graph(self, tile: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the pixel graph of one tile in CSR form: indptr and indices inside the tile."""
        name, p0, p1, e0, e1 = self._where[tile]
        node = self.node(f"pixels/{name}")
        return parts.read(node["indptr"], p0, p1), parts.read(node["indices"], e0, e1)

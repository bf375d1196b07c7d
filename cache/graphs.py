"""The graph file: kNN graphs of patches and pixel graphs of tiles, in one HDF5 file.

``/groups/<round>/<group>`` holds ``tiles`` (ids, in the order of the patches) and, where groups are
searched one by one, their symmetric feature graph in CSR form. Where the whole split was searched,
``/edges/<block>`` holds the rows of its one feature graph, in CSR form, for a run of patches; the
patches are numbered through in the order of ``/tiles/ids``. ``/pixels/<part>`` holds the pixel
graphs of a run of tiles, ``/context`` what puts tokens into context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from cache import parts
from cache.errors import InputError

FORMAT = 3


class Csr(NamedTuple):
    """Rows of a graph: indptr ``(n + 1,)``, columns ``(edges,)``, weights float32 ``(edges,)``."""

    indptr: np.ndarray
    columns: np.ndarray
    weights: np.ndarray


class GroupGraph(NamedTuple):
    """The feature graph of one group: its tiles, and its edges as rows ``(patches,)``.

    Attributes:
        tiles: ids, int64, in the order of the rows.
        edges: columns count the patches of the group, or those of the whole split where ``firsts``
            is given: edges that leave the group are still in it then.
        firsts: number of the first patch of each tile in the split; None for graphs of groups.
    """

    tiles: np.ndarray
    edges: Csr
    firsts: np.ndarray | None = None


def write_group(folder: Path, name: str, at: tuple[int, int], tiles: np.ndarray, csr: Csr) -> None:
    """Write one group as a part; ``at`` is its round and its number in the round."""
    with parts.write_part(folder, name) as file:
        group = file.create_group(f"groups/{at[0]}/{at[1]}")
        parts.dataset(group, "tiles", np.asarray(tiles, np.int64))
        _write_csr(group, csr)


def write_groups(folder: Path, name: str, groups: Mapping[tuple[int, int], np.ndarray]) -> None:
    """Write the tiles of groups that have no graphs of their own, as a part."""
    with parts.write_part(folder, name) as file:
        for (round_, number), tiles in groups.items():
            group = file.create_group(f"groups/{round_}/{number}")
            parts.dataset(group, "tiles", np.asarray(tiles, np.int64))


def write_context(folder: Path, name: str, context: Mapping[str, Any]) -> None:
    """Write the arrays and scalars that put tokens into context, as a part."""
    with parts.write_part(folder, name) as file:
        group = file.create_group("context")
        for field, value in context.items():
            parts.dataset(group, field, np.asarray(value))


def read_context(folder: Path, name: str) -> dict[str, Any]:
    """What a part of `write_context` holds."""
    with parts.read_part(folder, name) as file:
        return {field: parts.read(stored) for field, stored in file["context"].items()}


def write_edges(folder: Path, name: str, block: int, csr: Csr) -> None:
    """Write the rows of one block of patches as a part."""
    with parts.write_part(folder, name) as file:
        _write_csr(file.create_group(f"edges/{block}"), csr)


def read_edges(folder: Path, name: str, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Indptr and columns of a part of `write_edges`."""
    with parts.read_part(folder, name) as file:
        group = file[f"edges/{block}"]
        return parts.read(group["indptr"]), parts.read(group["columns"]).astype(np.int64)


def write_tiles(
    folder: Path, name: str, tiles: np.ndarray, sizes: Sequence[int], blocks: np.ndarray
) -> None:
    """Write how patches are numbered, as a part: tiles in order, patches and block of each."""
    with parts.write_part(folder, name) as file:
        group = file.create_group("tiles")
        parts.dataset(group, "ids", np.asarray(tiles, np.int64))
        parts.dataset(group, "sizes", np.asarray(sizes, np.int64))
        parts.dataset(group, "blocks", np.asarray(blocks, np.int64))


def _write_csr(group: h5py.Group, csr: Csr) -> None:
    """Columns take the smallest unsigned type that holds them, weights float16."""
    greatest = int(csr.columns.max()) if len(csr.columns) else 0
    parts.dataset(group, "indptr", csr.indptr.astype(np.int64))
    parts.dataset(group, "columns", csr.columns.astype(np.min_scalar_type(greatest)))
    parts.dataset(group, "weights", csr.weights.astype(np.float16))


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
    """Where the rows of a tile lie: block, first row in it, first patch of the split, patches."""

    block: int
    row: int
    first: int
    size: int


class Graphs(parts.Assembled):
    """A complete graph file, opened for reading.

    Attributes:
        manifest: what it was made from: ``features`` (fingerprint of the cache), ``scope``, ``k``,
            ``level``, ``rounds``, ``groups`` (in each round), ``fingerprint``.

    Raises:
        InputError: the file is missing, half-written, damaged or of another version of the format.
    """

    stage = "graph"
    format = FORMAT

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._where: dict[int, tuple[str, int, int, int, int]] = {}
        for name in self.node("pixels"):
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

    def check_features(self, fingerprint: str) -> None:
        """Raise InputError unless the graph was made from the cache with this fingerprint."""
        if self.manifest["features"] != fingerprint:
            raise InputError(
                f"{self.path} was made from another feature cache ({self.manifest['features']}, "
                f"the cache is {fingerprint}): run `dvc repro graph` (or `eigenseg graph`) again."
            )

    def group(self, round_: int, group: int) -> GroupGraph:
        """The feature graph of one group."""
        node = self.node(f"groups/{round_}/{group}")
        tiles = parts.read(node["tiles"])
        if not self._places:
            return GroupGraph(tiles, self._rows(node, 0, len(node["indptr"]) - 1))
        places = [self._places[int(tile)] for tile in tiles]
        found = [self._rows(self.node(f"edges/{p.block}"), p.row, p.row + p.size) for p in places]
        ends = np.cumsum([0] + [len(csr.columns) for csr in found])
        indptr = [csr.indptr[1:] + end for csr, end in zip(found, ends, strict=False)]
        edges = Csr(
            np.concatenate([[0], *indptr]),
            np.concatenate([csr.columns for csr in found]),
            np.concatenate([csr.weights for csr in found]),
        )
        return GroupGraph(tiles, edges, np.array([place.first for place in places]))

    def _rows(self, node: h5py.Group, start: int, stop: int) -> Csr:
        indptr = parts.read(node["indptr"], start, stop + 1)
        first, last = int(indptr[0]), int(indptr[-1])
        return Csr(
            indptr - first,
            parts.read(node["columns"], first, last),
            parts.read(node["weights"], first, last).astype(np.float32),
        )

    def context(self) -> dict[str, Any]:
        """The arrays and scalars that put tokens into context, by name."""
        return {field: parts.read(stored) for field, stored in self.node("context").items()}

    def pixel_graph(self, tile: int) -> tuple[np.ndarray, np.ndarray]:
        """The pixel graph of one tile in CSR form: indptr and indices inside the tile."""
        name, p0, p1, e0, e1 = self._where[tile]
        node = self.node(f"pixels/{name}")
        return parts.read(node["indptr"], p0, p1), parts.read(node["indices"], e0, e1)

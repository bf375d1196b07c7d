"""The graph file: kNN graphs of groups of images and pixel graphs of tiles, in one HDF5 file.

``/groups/<round>/<group>`` holds ``tiles`` (ids, in the order of the patches), ``indices`` and
``similarities`` ``(n, k)``; ``/pixels/<part>`` holds the pixel graphs of a run of tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cache import parts
from cache.errors import InputError


class GroupGraph(NamedTuple):
    """The kNN graph of one group: its tiles, neighbours and cosines, both ``(n, k)``."""

    tiles: np.ndarray
    indices: np.ndarray
    similarities: np.ndarray


def write_group(folder: Path, name: str, at: tuple[int, int], graph: GroupGraph) -> None:
    """Write one group as a part; ``at`` is its round and its number in the round.

    Indices are stored in the smallest unsigned type that holds them, cosines as float16.
    """
    n = len(graph.indices)
    with parts.write_part(folder, name) as file:
        group = file.create_group(f"groups/{at[0]}/{at[1]}")
        parts.dataset(group, "tiles", np.asarray(graph.tiles, np.int64))
        parts.dataset(group, "indices", graph.indices.astype(np.min_scalar_type(n)))
        parts.dataset(group, "similarities", graph.similarities.astype(np.float16))


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


class Graphs(parts.Assembled):
    """A complete graph file, opened for reading.

    Attributes:
        manifest: what it was made from: ``features`` (fingerprint of the cache), ``k``, ``level``,
            ``rounds``, ``groups`` (in each round), ``fingerprint``.

    Raises:
        InputError: the file is missing, half-written or damaged.
    """

    stage = "graph"

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

    def check_features(self, fingerprint: str) -> None:
        """Raise InputError unless the graph was made from the cache with this fingerprint."""
        if self.manifest["features"] != fingerprint:
            raise InputError(
                f"{self.path} was made from another feature cache ({self.manifest['features']}, "
                f"the cache is {fingerprint}): run `dvc repro graph` (or `eigenseg graph`) again."
            )

    def group(self, round_: int, group: int) -> GroupGraph:
        """The kNN graph of one group: int64 tiles, int32 indices, float32 cosines."""
        node = self.node(f"groups/{round_}/{group}")
        return GroupGraph(
            parts.read(node["tiles"]),
            parts.read(node["indices"]).astype(np.int32),
            parts.read(node["similarities"]).astype(np.float32),
        )

    def pixel_graph(self, tile: int) -> tuple[np.ndarray, np.ndarray]:
        """The pixel graph of one tile in CSR form: indptr and indices inside the tile."""
        name, p0, p1, e0, e1 = self._where[tile]
        node = self.node(f"pixels/{name}")
        return parts.read(node["indptr"], p0, p1), parts.read(node["indices"], e0, e1)

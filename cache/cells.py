"""Work files of the search over a whole data set: its patches by cell, and the edges found.

They lie in the graph stage's work folder and are gone when the graph is complete. The part
``cells`` holds the centres of the cells and unit rows of all patches, float16, cell after cell; the
parts ``found-<block>`` hold edges, sorted by the block of patches that their row lies in, the parts
``between-<block>`` how many edges join the images of a block with others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from scipy.sparse import coo_array, csr_array

from cache import parts

CELLS = "cells"


class Edges(NamedTuple):
    """A list of edges: rows and columns int64, weights float32, all ``(e,)``."""

    rows: np.ndarray
    columns: np.ndarray
    weights: np.ndarray


def write_cells(
    folder: Path,
    centres: np.ndarray,
    cells: np.ndarray,
    blocks: Iterable[tuple[int, np.ndarray]],
    facts: dict[str, Any],
) -> None:
    """Write the patches by cell, one block of patches in memory at a time.

    Args:
        centres: float32 ``(cells, C)``.
        cells: integer ``(patches,)``, the cell of each patch.
        blocks: number of the first patch and unit rows ``(n, C)`` of consecutive patches.
        facts: JSON-able values to keep beside them.
    """
    starts = np.concatenate([[0], np.cumsum(np.bincount(cells, minlength=len(centres)))])
    with parts.write_part(folder, CELLS) as file:
        vectors = parts.empty(file, "vectors", (len(cells), centres.shape[1]), np.float16)
        ids = parts.empty(file, "ids", (len(cells),), np.int64)
        parts.dataset(file, "centres", centres)
        parts.dataset(file, "starts", starts)
        file.attrs["facts"] = json.dumps(facts)
        free = starts[:-1].copy()
        for first, rows in blocks:
            own = cells[first : first + len(rows)]
            order = np.argsort(own, kind="stable")
            present, at = np.unique(own[order], return_index=True)
            for cell, members in zip(present, np.split(order, at[1:]), strict=True):
                place = slice(free[cell], free[cell] + len(members))
                vectors[place] = rows[members].astype(np.float16)
                ids[place] = first + members
                free[cell] += len(members)


class Cells(NamedTuple):
    """The patches by cell, opened for reading.

    Attributes:
        centres: float32 ``(cells, C)``.
        facts: what `write_cells` was given.
    """

    centres: np.ndarray
    facts: dict[str, Any]
    starts: np.ndarray
    file: h5py.File

    def read(self, cell: int) -> tuple[np.ndarray, np.ndarray]:
        """The members of a cell: ids int64 ``(m,)`` and unit rows float32 ``(m, C)``."""
        start, stop = self.starts[cell], self.starts[cell + 1]
        ids = parts.read(self.file["ids"], start, stop)
        return ids, parts.read(self.file["vectors"], start, stop).astype(np.float32)


@contextmanager
def open_cells(folder: str | Path) -> Iterator[Cells]:
    """Open what `write_cells` has written."""
    with parts.read_part(folder, CELLS) as file:
        centres, starts = parts.read(file["centres"]), parts.read(file["starts"])
        yield Cells(centres, json.loads(file.attrs["facts"]), starts, file)


def write_found(folder: Path, name: str, edges: Edges, firsts: Sequence[int]) -> None:
    """Write edges as a part, sorted by the block of their row.

    Args:
        firsts: number of the first patch of each block, ascending.
    """
    block = np.searchsorted(firsts, edges.rows, side="right") - 1
    order = np.argsort(block, kind="stable")
    starts = np.searchsorted(block[order], np.arange(len(firsts) + 1))
    with parts.write_part(folder, name) as file:
        parts.dataset(file, "starts", starts)
        for field, values in edges._asdict().items():
            parts.dataset(file, field, values[order])


def read_found(folder: Path, names: Sequence[str], block: int) -> Edges:
    """The edges of all these parts whose row lies in one block."""
    found = [_edges_of(folder, name, block) for name in names]
    return Edges(*map(np.concatenate, zip(*found, strict=True)))


def _edges_of(folder: Path, name: str, block: int) -> Edges:
    with parts.read_part(folder, name) as file:
        start, stop = parts.read(file["starts"], block, block + 2)
        return Edges(*(parts.read(file[field], start, stop) for field in Edges._fields))


def write_between(
    folder: Path, name: str, images: np.ndarray, counts: csr_array, totals: np.ndarray
) -> None:
    """Write how many edges join images, as a part.

    Args:
        images: of the rows, their positions in the split, ``(m,)``.
        counts: integer ``(m, all images)``.
        totals: edges of each of these images with any other, ``(m,)``.
    """
    with parts.write_part(folder, name) as file:
        parts.dataset(file, "images", images)
        parts.dataset(file, "totals", totals)
        for field in ("data", "indices", "indptr"):
            parts.dataset(file, field, getattr(counts, field))


def read_between(folder: Path, names: Sequence[str], images: int) -> tuple[csr_array, np.ndarray]:
    """Counts ``(images, images)`` and totals ``(images,)`` over all these parts."""
    joined, totals = csr_array((images, images), dtype=np.int64), np.zeros(images, np.int64)
    for name in names:
        with parts.read_part(folder, name) as file:
            own = parts.read(file["images"])
            fields = (parts.read(file[field]) for field in ("data", "indices", "indptr"))
            part = csr_array(tuple(fields), shape=(len(own), images)).tocoo()
            np.add.at(totals, own, parts.read(file["totals"]))
        placed = coo_array((part.data, (own[part.row], part.col)), shape=(images, images))
        joined = joined + placed.tocsr()
    return joined, totals

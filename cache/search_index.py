"""The index of FAISS over a whole data set: work files, deleted when the graph is complete.

Inverted lists are read through a memory map: processes share them, and they may exceed memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from faiss.contrib.ondisk import merge_ondisk

from cache.store.artefact import file_hash, read_manifest, write_manifest
from cache.store.errors import InputError

IN_MEMORY = 4 << 30  # bytes of codes that are held while the index is filled
NAMES = ("index.faiss", "lists.faiss", "index.json")


def write_index(
    folder: Path, empty: faiss.IndexIVF, blocks: Iterable[tuple[int, np.ndarray]]
) -> None:
    """Fill an index and write it, in pieces that are merged where it is larger than memory.

    Args:
        empty: a trained index without rows.
        blocks: first id and rows, float32 ``(n, c)``, of consecutive rows.
    """
    pieces: list[str] = []
    index: Any = faiss.clone_index(empty)
    for first, rows in blocks:
        index.add_with_ids(rows, np.arange(first, first + len(rows)))
        if index.ntotal * index.code_size > IN_MEMORY:
            pieces.append(_write_piece(folder, len(pieces), index))
            index = faiss.clone_index(empty)
    path, lists = folder / NAMES[0], folder / NAMES[1]
    if pieces:
        pieces.append(_write_piece(folder, len(pieces), index))
        index = faiss.clone_index(empty)
        merge_ondisk(index, pieces, str(lists))
        for piece in pieces:
            Path(piece).unlink()
    faiss.write_index(index, str(path))


def _write_piece(folder: Path, number: int, index: faiss.IndexIVF) -> str:
    path = str(folder / f"piece-{number}.faiss")
    faiss.write_index(index, path)
    return path


def complete_index(folder: Path, facts: dict[str, Any]) -> None:
    """Write the facts of the search and digests last, which makes the index whole."""
    digests = {name: file_hash(folder / name) for name in NAMES[:2] if (folder / name).exists()}
    write_manifest(folder / NAMES[2], {**facts, "sha256": digests})


def index_facts(folder: Path) -> dict[str, Any] | None:
    """Read the facts of `complete_index`; None where the index is not whole, or damaged."""
    try:
        facts = read_manifest(folder / NAMES[2], "")
        digests = facts.pop("sha256")
        whole = all(file_hash(folder / name) == digest for name, digest in digests.items())
    except (InputError, OSError, KeyError, AttributeError):
        return None
    return facts if whole else None


def open_index(folder: str | Path) -> faiss.IndexIVF:
    """Open the index, its lists mapped into memory."""
    on_disk = (Path(folder) / NAMES[1]).exists()  # merged lists are mapped in any case
    flags = faiss.IO_FLAG_ONDISK_SAME_DIR if on_disk else faiss.IO_FLAG_MMAP
    index: Any = faiss.read_index(str(Path(folder) / NAMES[0]), flags | faiss.IO_FLAG_READ_ONLY)
    return index

"""Small maps of ids as runs of bytes, as the atlas and its files of names hold them."""

from __future__ import annotations

import numpy as np

LONGEST = 255  # cells: a run's length is one byte


def pack(ids: np.ndarray) -> bytes:
    """A map ``(h, w)`` of ids below 65536, row after row, as runs of three bytes each.

    The id's low byte, its high byte, and how many cells it holds for (1 to `LONGEST`).
    """
    flat = ids.ravel().astype(np.int64)
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = np.diff(np.append(starts, flat.size))
    pieces = -(-lengths // LONGEST)
    values = np.repeat(flat[starts], pieces)
    sizes = np.full(len(values), LONGEST)
    sizes[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * LONGEST
    return np.stack([values & 255, values >> 8, sizes], axis=1).astype(np.uint8).tobytes()


def unpack(content: bytes, height: int, width: int) -> np.ndarray:
    """The map uint16 ``(height, width)`` that `pack` packed.

    Raises:
        ValueError: the runs do not fill the map.
    """
    table = np.frombuffer(content, np.uint8).reshape(-1, 3).astype(np.uint16)
    flat = np.repeat(table[:, 0] | table[:, 1] << 8, table[:, 2])
    return flat.reshape(height, width)

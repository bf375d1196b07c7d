"""The files of a sharded Zarr array, read chunk by chunk and written shard by shard.

zarr-python takes about ten times as long for a tile, mostly before it reads a byte. The layout is
that of Zarr's `sharding_indexed` codec with `bytes` and `crc32c` inside: chunks (little-endian
values, then their crc32c), and at the end of the file the start and length of each chunk (two
uint64) with their crc32c.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from google_crc32c import value as crc32c

from cache.store.artefact import file_hash, fingerprint, partial_name, read_marker, write_json

_CRC = 4  # bytes of a checksum
_ABSENT = 2**64 - 1  # start and length of a chunk that holds nothing but the fill value


class Shards:
    """A sharded Zarr array ``(slots, C)`` whose chunks have all C columns.

    Attributes:
        slots: of the whole array.
        chunk: slots in a chunk.
        chunks_in_shard: chunks in a shard.
        channels: C.
        dtype: of the values.
    """

    def __init__(self, folder: Path, name: str) -> None:
        metadata = json.loads((folder / name / "zarr.json").read_text())
        (sharding,) = metadata["codecs"]
        self.chunk, self.channels = sharding["configuration"]["chunk_shape"]
        self.dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
        shard, _ = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        self.slots = metadata["shape"][0]
        self.chunks_in_shard = shard // self.chunk
        self._fill = np.array(metadata["fill_value"], np.float64)  # NaN is written as a text
        self._place = folder, name

    def write(self, shard: int, values: np.ndarray) -> None:
        """Write one whole shard ``(slots of a shard, C)``; its file appears when it is complete."""
        chunks = np.ascontiguousarray(values, self.dtype).reshape(self.chunks_in_shard, -1)
        length = chunks[0].nbytes + _CRC
        index = np.full((self.chunks_in_shard, 2), length, "<u8")
        index[:, 0] = np.arange(self.chunks_in_shard) * length
        file = shard_file(*self._place, shard)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_name(file)
        with open(partial, "wb") as stream:
            for content in (*chunks, index):
                stream.write(content.data)
                stream.write(crc32c(content).to_bytes(_CRC, "little"))
        os.replace(partial, file)

    def read(self, number: int) -> np.ndarray:
        """One chunk by its number in the array: ``(chunk, C)``, freshly read.

        Raises:
            OSError: the shard's file is missing or shorter than a shard can be.
            ValueError: its bytes are not what was written.
        """
        shard, inside = divmod(number, self.chunks_in_shard)
        expected = self.chunk * self.channels * self.dtype.itemsize + _CRC
        with open(shard_file(*self._place, shard), "rb", buffering=0) as file:
            file.seek(-16 * self.chunks_in_shard - _CRC, os.SEEK_END)
            index = _checked(np.frombuffer(file.read(), np.uint8), "index")
            start, length = index.view("<u8").reshape(-1, 2)[inside].tolist()
            if start == length == _ABSENT:
                return np.full((self.chunk, self.channels), self._fill, self.dtype)
            if length != expected:
                raise ValueError(f"chunk {inside} must have {expected} bytes, found {length}")
            file.seek(start)
            stored = np.empty(length, np.uint8)
            if file.readinto(stored.data) != length:
                raise ValueError(f"chunk {inside} must have {length} bytes, found the file's end")
        values = _checked(stored, f"chunk {inside}")
        return values.view(self.dtype).reshape(self.chunk, self.channels)


def mark_whole(marker: Path, folder: Path, files: Iterable[Path]) -> None:
    """Write sizes and digests of whole files below a folder, last of all."""
    facts = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, file_hash(path)]
        for path in files
    }
    write_json(marker, facts)


def is_whole(marker: Path, folder: Path, *, read: bool) -> bool:
    """Tell whether a marker's files have their sizes and, if they are ``read``, their digests."""
    try:
        facts = read_marker(marker).items()
        return bool(facts) and all(
            (folder / name).stat().st_size == size
            and (not read or file_hash(folder / name) == digest)
            for name, (size, digest) in facts
        )
    except (OSError, AttributeError, TypeError, ValueError):
        return False


def layout_fingerprint(folder: Path) -> str:
    """Make a fingerprint of the metadata of all arrays below a folder: shapes, types, codecs."""
    files = sorted(folder.rglob("zarr.json"))
    return fingerprint([(path.relative_to(folder).as_posix(), file_hash(path)) for path in files])


def shard_file(folder: Path, name: str, shard: int) -> Path:
    """Give the path of a shard of an array."""
    return Path(f"{folder}/{name}/c/{shard}/0")


def _checked(stored: np.ndarray, name: str) -> np.ndarray:
    """Check bytes and strip the checksum that follows them."""
    content, expected = stored[:-_CRC], int.from_bytes(stored[-_CRC:].tobytes(), "little")
    found = crc32c(content)
    if found != expected:
        raise ValueError(f"the crc32c of its {name} must be {expected:08x}, found {found:08x}")
    return content


def finite(values: np.ndarray) -> bool:
    """Tell whether float16 values are all finite.

    Infinities and NaN are the greatest bit patterns of each sign. Comparing patterns is many times
    as fast as `np.isfinite`, which takes float16 one by one.
    """
    bits = values.view(np.int16).max(initial=0), values.view(np.uint16).max(initial=0)
    return bool(bits[0] < 0x7C00 and bits[1] < 0xFC00)

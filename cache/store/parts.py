"""One HDF5 file made from parts: each part is written by one job, whole or not at all.

A part is ``part-<name>.h5`` in the work folder; finished parts survive a kill. `assemble` copies
the parts into one file and writes its manifest last. Datasets carry Fletcher-32 and zlib's
checksums, HDF5's newest layout checks its own structures, and the manifest has a SHA-256, so that
damaged bytes raise an error.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import h5py
import numpy as np

from cache.store.artefact import amount, publish, write_bytes
from cache.store.errors import InputError

SPARE = 1 << 20  # bytes that assembling may take beyond the sizes of the parts
CHUNK_BYTES = 256 << 10  # what one read fetches and one checksum covers, before compression
HEADER_BYTES = 64 << 10  # of headers, as on disk, that HDF5 keeps of a file open for reading
DAMAGE = (OSError, RuntimeError, KeyError, ValueError)  # what h5py raises for damaged files


@contextmanager
def write_part(folder: str | Path, name: str) -> Iterator[h5py.File]:
    """Give an HDF5 file in memory to fill; it becomes the part at the end without an error.

    HDF5 itself may leave chunks out on a full disk, or crash when it closes the file.
    """
    with h5py.File(name, "w", driver="core", backing_store=False, libver="latest") as file:
        yield file
        file.attrs["complete"] = True
        file.flush()
        content = file.id.get_file_image()
    write_bytes(_part(folder, name), content)


def finished(folder: str | Path, name: str) -> bool:
    """Tell whether a part is whole with every checksum right; delete a damaged one."""
    path = _part(folder, name)
    if not path.exists():
        return False
    try:
        with h5py.File(path, "r") as file:
            whole = bool(file.attrs.get("complete", False))
            file.visititems(_verify)
    except DAMAGE:
        whole = False
    if not whole:
        path.unlink()
    return whole


@contextmanager
def read_part(folder: str | Path, name: str) -> Iterator[h5py.File]:
    """Open a finished part for reading.

    Raises:
        InputError: it is missing or damaged.
    """
    path = _part(folder, name)
    try:
        file = h5py.File(path, "r")
    except DAMAGE as error:
        raise InputError(f"{path} is missing or damaged: run the stage again.") from error
    with file:
        yield file


def assemble(
    folder: str | Path, names: Sequence[str], out: str | Path, manifest: Mapping[str, Any]
) -> None:
    """Copy the parts, in order, into one file, write the manifest, and move it to ``out``.

    Groups of one name are united; a dataset must be in one part only.

    Args:
        manifest: JSON-able; a file without it is incomplete.

    Raises:
        InputError: a part is missing.
    """
    missing = [name for name in names if not _part(folder, name).exists()]
    if missing:
        raise InputError(f"{folder} lacks the parts {missing[:10]}: run the stage again.")
    partial = Path(folder) / "assembled.h5.partial"
    _check_space(Path(folder), SPARE + sum(_part(folder, name).stat().st_size for name in names))
    with h5py.File(partial, "w", libver="latest") as file:
        for name in names:
            with h5py.File(_part(folder, name), "r") as part:
                _unite(part, file)
        text = json.dumps(manifest)
        dataset(file, "manifest", np.frombuffer(text.encode(), np.uint8))
        file.flush()
        # Of fixed length: others lie on a heap without checksums, where HDF5 hangs on damage.
        file.attrs["manifest_sha256"] = np.bytes_(_sha256(text))
    with h5py.File(partial, "r") as file:
        file.visititems(_verify)  # closing tells nothing of chunks that did not reach the disk
    _settle(partial, Path(out))


def open_complete(path: str | Path, stage: str) -> tuple[h5py.File, dict[str, Any]]:
    """Open an assembled file for reading, with its manifest.

    Args:
        stage: the stage that writes the file, named in the way out.

    Raises:
        InputError: the file is missing, half-written, truncated or no HDF5 file.
    """
    if not Path(path).exists():
        raise InputError(
            f"{path} is missing: run `eigenseg {stage}` (or `dvc repro {stage}`) first."
        )
    way_out = f"delete it and run `eigenseg {stage}` (or `dvc repro {stage}`) again."
    try:
        file = h5py.File(path, "r")
    except DAMAGE as error:
        raise InputError(f"{path} is no whole HDF5 file ({error}): {way_out}") from error
    try:
        _bound_cache(file)
        file.visititems(lambda *_: None)  # the headers of all that it holds, each with a checksum
        text = file["manifest"][()].tobytes().decode()
        if _sha256(text).encode() != file.attrs["manifest_sha256"]:
            raise ValueError("its SHA-256 differs")
        return file, json.loads(text)
    except DAMAGE as error:
        file.close()
        raise InputError(
            f"{path} has no whole manifest or damaged structures ({error}): {way_out}"
        ) from error


def _bound_cache(file: h5py.File) -> None:
    """Let HDF5 forget headers beyond `HEADER_BYTES`, so that memory stays constant.

    By default it keeps up to 32 MB, counted as on disk: 165 bytes a dataset, which take 5 kB in
    memory. Reading image after image is no slower.
    """
    config = file.id.get_mdc_config()
    config.set_initial_size = True
    config.initial_size = config.min_size = config.max_size = HEADER_BYTES
    file.id.set_mdc_config(config)


class Assembled:
    """A complete assembled file, opened for reading; a context manager.

    Attributes:
        stage: the stage that writes the file.
        format: the version of its layout, which its manifest must name.
        manifest: what the file was made from.
    """

    stage: ClassVar[str]
    format: ClassVar[int]

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file, self.manifest = open_complete(path, self.stage)
        if self.manifest.get("format") != self.format:
            self._file.close()
            raise InputError(
                f"{path} has format {self.manifest.get('format')}, this version reads "
                f"{self.format}: run `eigenseg {self.stage}` (or `dvc repro {self.stage}`) again."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def has(self, name: str) -> bool:
        """Tell whether the file holds a group or dataset of this name."""
        return name in self._file

    def node(self, name: str) -> Any:
        """Find the group or dataset of this name.

        Raises:
            InputError: it is not in the file.
        """
        try:
            return self._file[name]
        except KeyError as error:
            raise InputError(
                f"{self.path} holds no {name}, only {', '.join(self._file)}: it is of other images "
                f"or damaged; run `eigenseg {self.stage}` (or `dvc repro {self.stage}`) again."
            ) from error


def dataset(group: h5py.Group, name: str, array: np.ndarray, *, compress: bool = False) -> None:
    """Store an array with checksums; ``compress`` it where neighbours are alike (label maps)."""
    if not array.size or not array.ndim:
        group.create_dataset(name, data=array)  # HDF5 cannot chunk, so not check, these
        return
    row_bytes = array.nbytes // len(array)
    chunks = (min(len(array), max(1, CHUNK_BYTES // row_bytes)), *array.shape[1:])
    group.create_dataset(
        name,
        data=array,
        chunks=chunks,
        fletcher32=True,
        shuffle=compress,
        # Level 0 packs without compressing: the Fletcher-32 of zeros is 0, so that of a block of
        # zeros where a chunk was it says nothing, but zeros are no stream of zlib's.
        compression="gzip",
        compression_opts=1 if compress else 0,
    )


def read(stored: h5py.Dataset, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Read a dataset, or its rows from ``start`` to ``stop``.

    Raises:
        InputError: the stored bytes are damaged.
    """
    try:
        return stored[start:stop] if stored.ndim else stored[()]
    except DAMAGE as error:
        raise InputError(
            f"{stored.file.filename}: the dataset {stored.name} is damaged ({error}): delete the "
            "file and run the stage that writes it again (`dvc repro --force <stage>`)."
        ) from error


def _part(folder: str | Path, name: str) -> Path:
    return Path(folder) / f"part-{name}.h5"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _settle(partial: Path, path: Path) -> None:
    """Bring the bytes to the disk before the name, so that a power cut leaves no empty file."""
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    publish(partial, path)


def _check_space(folder: Path, needed: int) -> None:
    """Raise OSError where the disk has less room than needed, before HDF5 runs into it."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        text = f"{amount(needed)} are needed in {folder}, {amount(free)} are free"
        raise OSError(errno.ENOSPC, text)


def _verify(_: str, item: h5py.Group | h5py.Dataset) -> None:
    """Raise one of `DAMAGE` where a chunk is missing (HDF5 reads it as zeros) or damaged."""
    if isinstance(item, h5py.Dataset) and item.chunks and math.prod(item.shape):
        sides = zip(item.shape, item.chunks, strict=True)
        expected = math.prod(-(-length // chunk) for length, chunk in sides)
        if item.id.get_num_chunks() != expected:
            raise OSError(f"{item.name} has {item.id.get_num_chunks()} of {expected} chunks")
        for chunk in item.iter_chunks():
            item[chunk]


def _unite(source: h5py.Group, target: h5py.Group) -> None:
    """Copy what a group holds; chunks are copied as they are, with their checksums."""
    for name, item in source.items():
        if isinstance(item, h5py.Group):
            _unite(item, target.require_group(name))
        else:
            source.copy(item, target, name)

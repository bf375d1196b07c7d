"""The file of label maps: cluster ids of every image at its own resolution, in one HDF5 file.

``/<predictor>/<image id>`` holds ids ``(height, width)``, uint8 for K <= 256, else uint16;
``/eigenfunctions/<image id>`` holds the first logits at the patch grid, float16 ``(m, h, w)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import h5py
import numpy as np

from cache import parts
from cache.errors import InputError

FORMAT = 1
PREDICTORS = ("ours", "ours_kmeans", "kmeans")


class ImageMaps(NamedTuple):
    """What is stored of one image: ids ``(height, width)`` by predictor, logits ``(m, h, w)``."""

    image: int
    labels: Mapping[str, np.ndarray]
    eigenfunctions: np.ndarray


def write_maps(
    folder: str | Path, name: str, maps: Iterable[ImageMaps], clusters: Mapping[str, int]
) -> None:
    """Write the maps of some images as a part of the file, one image in memory at a time.

    Args:
        clusters: K of each predictor.
    """
    with parts.write_part(folder, name) as file:
        for found in maps:
            key = _key(found.image)
            for predictor, k in clusters.items():
                ids = found.labels[predictor].astype(np.uint8 if k <= 256 else np.uint16)
                parts.dataset(file.require_group(predictor), key, ids, compress=True)
            values = found.eigenfunctions.astype(np.float16)
            parts.dataset(file.require_group("eigenfunctions"), key, values)


class Segments:
    """A complete file of label maps, opened for reading; a context manager.

    Attributes:
        manifest: what it was made from: ``features`` and ``head`` (fingerprints), ``temperature``,
            ``clusters``, ``images``, ``fingerprint``.
    """

    def __init__(self, path: Path, file: h5py.File, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._file = file

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a file of label maps.

        Raises:
            InputError: it is missing, half-written, damaged or of another version of the format.
        """
        file, manifest = parts.open_complete(path, "segment")
        if manifest.get("format") != FORMAT:
            file.close()
            raise InputError(
                f"{path} has format {manifest.get('format')}, this version reads {FORMAT}: "
                "run `eigenseg segment` (or `dvc repro segment`) again."
            )
        return cls(Path(path), file, manifest)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def clusters(self) -> dict[str, int]:
        """K of each predictor, in the order of `PREDICTORS`."""
        return self.manifest["clusters"]

    @property
    def images(self) -> list[int]:
        """Ids of the images, ascending."""
        return self.manifest["images"]

    def read(self, predictor: str, image: int) -> np.ndarray:
        """Cluster ids of one image: uint16 ``(height, width)`` at its own resolution.

        Raises:
            InputError: there is no such map, or its bytes are damaged.
        """
        return self._read(predictor, image).astype(np.uint16)

    def eigenfunctions(self, image: int) -> np.ndarray:
        """The first m logits of one image: float16 ``(m, grid_h, grid_w)``; errors as `read`."""
        return self._read("eigenfunctions", image)

    def _read(self, group: str, image: int) -> np.ndarray:
        try:
            stored = self._file[f"{group}/{_key(image)}"]
        except KeyError as error:
            raise InputError(
                f"{self.path} holds {', '.join(self._file)} of {len(self.images)} images, not "
                f"{group} of image {image}: run `eigenseg segment` (or `dvc repro segment`) again."
            ) from error
        return parts.read(stored)


def _key(image: int) -> str:
    return f"{image:08d}"

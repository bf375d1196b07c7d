"""The file of label maps: cluster ids of every image at its own resolution, in one HDF5 file.

``/<variant>/<predictor>/<image id>`` holds ids ``(height, width)``, uint8 for K <= 256, else
uint16; a variant is a protocol of evaluation, or one and a CRF (``full``, ``full+crf``). Of the
first protocol ``/eigenfunctions/<image id>`` holds the first logits at the patch grid, float16
``(m, h, w)``;
``/seconds/<image id>`` and ``/margins/<image id>`` the runner-up of `ours` there, and its distance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cache.index import ImageRow
from cache.store import parts

FORMAT = 4
PREDICTORS = ("ours", "ours_kmeans", "kmeans")
SEMI_SUPERVISED = "semi_supervised"  # the fourth, of heads that learned labels: ids are classes
CRF = "+crf"  # ends the names of variants that passed one


class ImageMaps(NamedTuple):
    """Maps of one image: ids ``(height, width)`` by variant and predictor; at the grid
    logits ``(m, h, w)``, ids ``(h, w)`` that came second in `ours`, and how far they are behind."""

    image: int
    labels: Mapping[str, Mapping[str, np.ndarray]]
    eigenfunctions: np.ndarray
    seconds: np.ndarray
    margins: np.ndarray


def write_maps(
    folder: str | Path, name: str, maps: Iterable[ImageMaps], clusters: Mapping[str, int]
) -> None:
    """Write the maps of some images as a part of the file, one image in memory at a time.

    Args:
        clusters: K of each predictor.
    """
    with parts.write_part(folder, name) as file:
        for image in maps:
            key = _key(image.image)
            for variant, (predictor, k) in product(image.labels, clusters.items()):
                ids = image.labels[variant][predictor].astype(np.uint8 if k <= 256 else np.uint16)
                parts.dataset(file.require_group(f"{variant}/{predictor}"), key, ids, compress=True)
            at_grid = {
                "eigenfunctions": image.eigenfunctions.astype(np.float16),
                "seconds": image.seconds.astype(np.uint16),
                "margins": image.margins.astype(np.float16),
            }
            for group, values in at_grid.items():
                parts.dataset(file.require_group(group), key, values)


class Segments(parts.Assembled):
    """A complete file of label maps, opened for reading; a context manager.

    Attributes:
        manifest: what it was made from: ``features`` and ``head`` (fingerprints), ``model``,
            ``seed``, ``curve`` (SHA-256) and ``labelled`` of the head, ``temperature``,
            ``clusters``, ``protocols`` (name -> fields of its `Geometry`), ``variants``, ``images``
            (SHA-256 of each, by id), ``fingerprint``.

    Raises:
        InputError: the file is missing, half-written, damaged or of another version of the format.
    """

    stage = "segment"
    format = FORMAT

    @property
    def made(self) -> str:
        """The day on which the file was written, such as 2026-03-01 (UTC)."""
        return datetime.fromtimestamp(self.path.stat().st_mtime, UTC).date().isoformat()

    @property
    def clusters(self) -> dict[str, int]:
        """K of each predictor: of `PREDICTORS`, and perhaps of `SEMI_SUPERVISED`."""
        return self.manifest["clusters"]

    @property
    def variants(self) -> list[str]:
        """Protocols, and protocols with a CRF."""
        return self.manifest["variants"]

    @property
    def main(self) -> str:
        """The variant that pictures and names are of: the first protocol, with the CRF if any."""
        first = self.variants[0]
        return f"{first}{CRF}" if f"{first}{CRF}" in self.variants else first

    def geometry(self, variant: str | None = None) -> dict[str, Any]:
        """Return the fields of the `Geometry` by which a variant (None: `main`) was made."""
        return self.manifest["protocols"][(variant or self.main).removesuffix(CRF)]

    @property
    def images(self) -> list[int]:
        """Ids of the images, ascending."""
        return [int(key) for key in self.manifest["images"]]

    @cached_property
    def by_content(self) -> dict[str, int]:
        """Ids by the SHA-256 of the image: an index that was made anew may number others so."""
        return {sha256: int(key) for key, sha256 in self.manifest["images"].items()}

    def stored(self, rows: Iterable[ImageRow]) -> list[ImageRow]:
        """The images that have label maps, with the ids that this file knows them by."""
        ids = self.by_content
        return [row._replace(id=ids[row.sha256]) for row in rows if row.sha256 in ids]

    def read(self, predictor: str, image: int, variant: str | None = None) -> np.ndarray:
        """Cluster ids of one image in a variant (None: `main`): uint16 ``(height, width)``.

        Raises:
            InputError: there is no such map, or its bytes are damaged.
        """
        return self._read(f"{variant or self.main}/{predictor}", image).astype(np.uint16)

    def eigenfunctions(self, image: int) -> np.ndarray:
        """The first m logits of one image: float16 ``(m, grid_h, grid_w)``; errors as `read`."""
        return self._read("eigenfunctions", image)

    def runner_up(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """Read what came second in `ours` at the patch grid, and by how much; errors as `read`.

        Returns:
            Ids uint16 ``(grid_h, grid_w)``, and float16 differences of the scores.
        """
        return self._read("seconds", image), self._read("margins", image)

    def _read(self, group: str, image: int) -> np.ndarray:
        return parts.read(self.node(f"{group}/{_key(image)}"))


def _key(image: int) -> str:
    return f"{image:08d}"

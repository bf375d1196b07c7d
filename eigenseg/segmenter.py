"""`Segmenter`: a trained head that segments photos, and the `Result` of one photo."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from cache import heads
from cache.images import find_white, read_image, survey
from cache.segments import SEMI_SUPERVISED
from cache.store.artefact import file_hash
from eigenseg.backbone import Extractor
from eigenseg.naming import check_naming, choose_predictor, read_naming, segments_of
from pipeline.device import choose_device
from pipeline.drawing.colours import OPACITY, overlay
from pipeline.drawing.naming import Naming, cluster_naming, learned_naming
from pipeline.geometry import Geometry, plan
from pipeline.maps.crf import CRFS, check_crf
from pipeline.maps.upsampling import at_grid
from pipeline.segmenter import Segmenter as Maps
from pipeline.segmenter import runner_up


@dataclass(frozen=True)
class Result:
    """Label maps of one photo.

    Attributes:
        image: the pixels that the maps cover, uint8 ``(H, W, 3)``: the whole photo, or the central
            square of a protocol with a crop.
        ids: cluster of every pixel, uint16 ``(H, W)``.
        seconds: cluster that came second at the patch grid, int64 ``(rows, columns)``.
        naming: what clusters are called.
        sha256: of the photo's file, by which corrections know it; None for other pixels.
    """

    image: np.ndarray
    ids: np.ndarray
    seconds: np.ndarray
    naming: Naming
    sha256: str | None
    _probability: torch.Tensor

    @cached_property
    def classes(self) -> np.ndarray:
        """Index into `names` of every pixel, uint8 ``(H, W)``, 255 = none; without names `ids`."""
        return self.naming.labels(self.ids, self.seconds, self.sha256)

    @property
    def names(self) -> list[str]:
        """The class names by index; empty where clusters have no names."""
        return self.naming.classes

    @property
    def confidence(self) -> np.ndarray:
        """The probability of the winning cluster, float32 ``(H, W)``.

        It is the softmax at the patch grid, interpolated. It ranks pixels; it is not calibrated.
        """
        large = F.interpolate(self._probability[None, None], self.ids.shape, mode="bilinear")
        return large[0, 0].numpy()

    def overlay(self, opacity: float = OPACITY) -> np.ndarray:
        """Draw the classes over the photo: uint8 ``(H, W, 3)``.

        Args:
            opacity: of the colours, 0 to 1.
        """
        return overlay(self.image, self.classes, self.naming.colours, opacity)


class Segmenter:
    """A trained head with its ViT: photos -> label maps, as `extract` and `segment` make them.

    Args:
        head: folder of the head, ``data/head`` or a copy of it anywhere.
        names: names.json of the atlas or mapping.json of `eval`; None = cluster ids, or the
            classes that `semi_supervised` says.
        predictor: ``ours``, ``ours_kmeans``, ``kmeans`` or, of a head that learned labels,
            ``semi_supervised``. None = ``semi_supervised`` where there is one and no names are
            given, else ``ours``.
        matching: which mapping of mapping.json.
        protocol: how photos are looked at: one of the protocols that the head was evaluated by.
            None = the first one that sees whole photos, else as training looks at them.
        weights: file or folder of the backbone's weights, where they have moved.
        device: ``auto``, ``cpu`` or ``cuda``.
        temperature, crf, merge_to: as in the section `segment` of params.yaml.

    Raises:
        InputError: the head, the backbone or the names are missing, damaged or do not fit.
        ValueError: there is no GPU or no package for what is asked for.
    """

    def __init__(
        self,
        head: str | Path,
        *,
        names: str | Path | Naming | None = None,
        predictor: str | None = None,
        matching: str = "majority_count",
        protocol: str | None = None,
        weights: str | None = None,
        device: str = "auto",
        temperature: float | None = None,
        crf: str = "none",
        merge_to: int | None = None,
    ) -> None:
        hardware = choose_device(device)
        check_crf(crf, temperature)
        state, fitted, self.manifest = heads.load_head(head)
        predictor = choose_predictor(self.manifest, predictor, named=names is not None)
        k = segments_of(self.manifest, merge_to, predictor)
        if isinstance(names, str | Path):
            names = read_naming(names, self.manifest, k, predictor, matching)
        if predictor == SEMI_SUPERVISED:
            names = learned_naming(self.manifest["labelled"])
        self.naming = cluster_naming(k) if names is None else names
        check_naming(self.naming, k)
        self.geometry = _geometry(self.manifest["backbone"], protocol)
        self.predictor = predictor
        self.white: float | None = self.manifest["backbone"].get("white")
        self._maps = Maps(
            self.manifest, state, fitted, hardware,
            temperature=temperature, refiner=CRFS[crf], merge_to=merge_to,
        )  # fmt: skip
        self._extractor = Extractor(self.manifest["backbone"], Path(head), weights, hardware)

    def __call__(
        self, image: str | Path | Image.Image | np.ndarray, sha256: str | None = None
    ) -> Result:
        """Segment one photo.

        Args:
            image: a path, a PIL image, or uint8 ``(H, W, 3)``.
            sha256: of the photo's file, by which corrections on the atlas know it; None = that of
                the path.

        Raises:
            InputError: the file is missing or cannot be decoded.
            ValueError: the array is no RGB image, or its features are not finite.
        """
        pixels = _pixels(image, self.white)
        if sha256 is None and self.naming.corrections and isinstance(image, str | Path):
            sha256 = file_hash(image)
        found = plan(self.geometry, *pixels.shape[:2])
        scores = self._maps.scores(self._extractor.tokens(pixels, found), found)
        ids = self._maps.label_map(scores, self.predictor, found, pixels)
        seconds, _ = runner_up(at_grid(found, scores[self.predictor]))
        probability = self._maps.confidence(scores, self.predictor, found).cpu()
        return Result(found.cut(pixels), ids, seconds, self.naming, sha256, probability)


def _geometry(extracted: dict, protocol: str | None) -> Geometry:
    protocols = {name: Geometry(**fields) for name, fields in extracted["protocols"].items()}
    if protocol is not None:
        if protocol not in protocols:
            raise ValueError(
                f"the protocol must be one of {', '.join(protocols)}, by which the head was "
                f"evaluated, found {protocol!r}"
            )
        return protocols[protocol]
    whole = (geometry for geometry in protocols.values() if not geometry.crop)
    return next(whole, Geometry(**extracted["whole"]))


def _pixels(image: str | Path | Image.Image | np.ndarray, white: float | None) -> np.ndarray:
    if isinstance(image, str | Path):
        white = white or find_white(survey([image])[0])
        return read_image(image, "Replace the file, or leave it out.", white=white)
    if isinstance(image, Image.Image) and image.mode[0] in "IF":
        raise ValueError(
            f"a picture must have 8 bits a channel, found mode {image.mode}, whose white is not "
            "known: give the path of its file, or convert it"
        )
    pixels = np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else image
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(
            f"an image must be uint8 of shape (H, W, 3), found {pixels.dtype} of shape "
            f"{pixels.shape}: convert it to 8-bit RGB"
        )
    return pixels

"""The ViT of a trained head: photos -> the tokens that its feature cache would hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.backbone import FOLDER, carried, facts, load_backbone, weights_hash
from cache.store.errors import InputError
from pipeline.device import hardware_bfloat16
from pipeline.features.vit import Backbone, Levels, half_tokens
from pipeline.geometry import Plan
from pipeline.segmenter import Level


class Extractor:
    """A frozen ViT that extracts tokens as the feature cache of a head was extracted.

    Args:
        manifest: of the feature cache.
        head: folder of the head, in which a small backbone travels.
        weights: file of the weights or, of a model in a folder (``local-dir:FOLDER``), its folder;
            None = what lies in the head, else as when the features were extracted.
        device: where the ViT computes.

    Raises:
        InputError: the backbone cannot be loaded, or it has other weights.
    """

    def __init__(
        self, manifest: dict[str, Any], head: Path, weights: str | None, device: torch.device
    ) -> None:
        # Emulated, bfloat16 is many times slower than the float32 that it stands for.
        bfloat16 = manifest["bfloat16"] and hardware_bfloat16(device)
        self.levels = Levels.of(manifest["levels"], manifest["normed"], bfloat16)
        self._arrays: dict[str, str] = manifest["levels"]
        self._batch: int = manifest["params"]["batch"]
        self._backbone, self._device = _open(manifest, head, weights), device

    def tokens(self, image: np.ndarray, plan: Plan) -> Iterator[dict[Level, np.ndarray]]:
        """Extract the tokens of every tile: float16 ``(patches, C)`` by level.

        Args:
            image: uint8 ``(H, W, 3)``.

        Raises:
            ValueError: features that are not finite.
        """
        for pixels in torch.stack(plan.tile_pixels(image)).split(self._batch):
            arrays = half_tokens(self._backbone, pixels.to(self._device), self.levels)
            if not all(np.isfinite(values).all() for values in arrays.values()):
                raise ValueError(
                    "its features are NaN or beyond float16, in which the head knows them. Leave "
                    "the image out, or let the block pass the final norm (`extract.final_norm`) "
                    "and train again."
                )
            for i in range(len(pixels)):
                yield {
                    int(level) if level.isdigit() else level: arrays[name][i]
                    for level, name in self._arrays.items()
                }


def _open(manifest: dict[str, Any], head: Path, weights: str | None) -> Backbone:
    model, path = manifest["model"], manifest.get("weights")
    if weights and path is None and model.startswith(FOLDER):
        model = FOLDER + weights
    elif weights:
        path = weights
    else:
        model, path = carried(head, model, path)
    try:
        loaded = load_backbone(model, path).cpu()
    except InputError as error:
        raise InputError(
            f"{error} For new photos, say where the backbone's weights are now: --weights, or "
            "`weights` of eigenseg.Segmenter."
        ) from error
    digest, expected = weights_hash(loaded), manifest["weights_sha256"]
    if digest != expected:
        raise InputError(
            f"the backbone must have the weights that the head's features were extracted with "
            f"(SHA-256 {expected[:16]}), found {digest[:16]} in {path or model}: name the file "
            "that has them with --weights, or run the pipeline again with these."
        )
    backbone = Backbone(loaded, **facts(loaded))
    return backbone._replace(**{name: manifest[name] for name in ("patch", "mean", "std")})

"""ReCo: retrieve images of a class by its name, co-segment them, look for what they share.

Shin, Xie, Albanie, "ReCo: Retrieve and Co-segment for Zero-shot Transfer", NeurIPS 2022. Of the
paper: an archive of images for every class, whose patches are compared under the guidance of dense
CLIP features; a seed in each image; their mean as the class's reference; at inference cosines to
the references times the same guidance. The authors' program gives sigmoids and temperature.

Left out: context elimination, whose background classes are chosen by hand, and ReCo+, which trains.
Other than there, the archive comes from the training split, not from ImageNet; CLIP is the ViT of
MaskCLIP; seeds are averaged at unit length; the two maps meet at the patches, not at the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.rivals.dsm import Picture
from bench.rivals.maskclip import Clip, cosines, embedding
from pipeline.features.whitening import unit_rows
from stages.running.progress import track

TEMPERATURE = 10.0  # that CLIP's cosines are multiplied by


def fit(
    clip: Clip,
    images: int,
    pixels: Callable[[int], np.ndarray],
    picture: Callable[[int], Picture],
    most: int,
) -> np.ndarray:
    """The reference of every class: unit rows, float32 ``(classes, C)``.

    Args:
        images: how many there are to retrieve from.
        pixels: an image by its number, uint8 ``(H, W, 3)``.
        picture: the same image's cached patches.
        most: images in the archive of a class.
    """
    looked = [embedding(clip, pixels(i)) for i in track(range(images), "image embeddings")]
    found = archives(torch.stack(looked), clip.texts, most)
    references = []
    for label, archive in enumerate(track(found.tolist(), "co-segmentation", unit="class")):
        pictures = [picture(i) for i in archive]
        weights = [
            attention(clip, pixels(i), seen.grid)[label].flatten().numpy()
            for i, seen in zip(archive, pictures, strict=True)
        ]
        references.append(reference([seen.tokens for seen in pictures], weights))
    return np.stack(references)


def archives(images: Tensor, texts: Tensor, most: int) -> Tensor:
    """For every text the images with the largest cosines: int64 ``(classes, min(most, n))``.

    Args:
        images, texts: unit rows ``(n, D)`` and ``(classes, D)``.
    """
    return (texts @ images.T).topk(min(most, len(images)), dim=1).indices


def attention(clip: Clip, image: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """Score an image by CLIP, in (0, 1), at the patches of a grid: ``(classes, h, w)``."""
    likely = torch.sigmoid(TEMPERATURE * cosines(clip, image))
    return F.interpolate(likely[None], grid, mode="bilinear")[0]


def seeds(rows: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> list[int]:
    """The patch of every image that is most at home in all: the largest mean of its maxima.

    Its maximum in an image is that of cosine times weight over the patches there. The image itself
    counts as well. (In the program the patches of an image reach into those that follow.)

    Args:
        rows: unit tokens float32 ``(n, C)`` of each image.
        weights: in [0, 1], ``(n,)`` each.
    """
    found = []
    for own in rows:
        maxima = [(own @ r.T * w).max(axis=1) for r, w in zip(rows, weights, strict=True)]
        found.append(int(np.mean(maxima, axis=0).argmax()))
    return found


def reference(tokens: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of the seeds, at unit length: float32 ``(C,)``; as `seeds`, of any lengths."""
    rows = [unit_rows(values) for values in tokens]
    chosen = [r[seed] for r, seed in zip(rows, seeds(rows, weights), strict=True)]
    return unit_rows(np.mean(chosen, axis=0, keepdims=True))[0]


def scores(clip: Clip, references: np.ndarray, picture: Picture, image: np.ndarray) -> Tensor:
    """Scores of the classes in (0, 1), by cached patches and CLIP: float32 ``(classes, h, w)``."""
    alike = torch.from_numpy(references @ unit_rows(picture.tokens).T).unflatten(1, picture.grid)
    return torch.sigmoid(alike) * attention(clip, image, picture.grid)

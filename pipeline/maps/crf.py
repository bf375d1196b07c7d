"""Label maps that follow the colours of the image: a fully connected CRF on the scores."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.maps.upsampling import upsample_argmax

POINTS = 7  # along the side of a patch, at which the CRF looks: half the pixels of a 14 px patch
SMOOTHNESS = 3.0  # weight of the kernel over places alone, one point wide
TEMPERATURE = 0.4  # of the softmax over clusters, in leads of the best score over the second
WEIGHT = 5.0  # of the kernel over places and colours
REACH = 5.0  # patches, its standard deviation over places
COLOUR = 13.0  # of 255, over each of red, green and blue


def check_crf(iterations: int) -> None:
    """Raise ValueError where a CRF is wanted and its package is not installed."""
    if iterations and find_spec("pydensecrf") is None:
        raise ValueError(
            "the CRF needs the package pydensecrf2, which is compiled where it is installed: "
            'run `pip install -c constraints.txt -e ".[crf]"`, or leave the CRF out (0 iterations)'
        )


def label_map(
    scores: Tensor,
    height: int,
    width: int,
    image: np.ndarray | None = None,
    iterations: int = 0,
) -> np.ndarray:
    """Cluster ids at the pixels: with a CRF `refine`, without one `upsample_argmax`.

    Args:
        scores: float32 ``(K, h, w)``, higher is better.
        image: uint8 ``(H, W, 3)``, needed by a CRF.
        iterations: of the CRF; 0 is none.

    Returns:
        uint16 ``(height, width)``.
    """
    if not iterations or image is None:
        return upsample_argmax(scores, height, width)
    return refine(scores, height, width, image, iterations)


def refine(
    scores: Tensor, height: int, width: int, image: np.ndarray, iterations: int
) -> np.ndarray:
    """Cluster ids at the pixels, from the mean field of a fully connected CRF at `POINTS` a patch.

    The model is Kraehenbuehl and Koltun's, whose pairs are all pairs of points of an image. Only
    clusters that are the best of some patch take part. Scores of predictors differ in scale
    (logits, cosines, distances), so they are divided by the lead of a patch's best score over its
    second, on average over the patches.

    Args, returns:
        As of `label_map`.

    Raises:
        ValueError: a score is not finite.
        ImportError: pydensecrf2 is not installed.
    """
    best = upsample_argmax(scores, *scores.shape[1:])
    ids = np.unique(best)
    if len(ids) == 1:
        return np.full((height, width), ids[0], np.uint16)
    first, second = scores.topk(2, dim=0).values.cpu().float()
    lead = (first - second).mean().clamp(min=1e-12)
    size = (scores.shape[1] * POINTS, scores.shape[2] * POINTS)
    winners = scores[torch.from_numpy(ids.astype(np.int64)).to(scores.device)].cpu().float()
    large = F.interpolate(winners[None], size, mode="bilinear")[0]
    logs = torch.log_softmax(large / (lead * TEMPERATURE), dim=0)
    small = F.interpolate(_planes(image), size, mode="area")[0].round().byte()
    field = _mean_field(-logs.numpy(), small.permute(1, 2, 0).contiguous().numpy(), iterations)
    return ids[upsample_argmax(torch.from_numpy(field), height, width)].astype(np.uint16)


def _planes(image: np.ndarray) -> Tensor:
    """uint8 ``(H, W, 3)`` -> float32 ``(1, 3, H, W)``."""
    return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]


def _mean_field(energies: np.ndarray, image: np.ndarray, iterations: int) -> np.ndarray:
    """Probabilities of clusters at points: float32 ``(K, h, w)`` -> float32 ``(K, h, w)``."""
    from pydensecrf.densecrf import DenseCRF2D  # of an extra: compiled where it is installed

    k, h, w = energies.shape
    model = DenseCRF2D(w, h, k)
    model.setUnaryEnergy(np.ascontiguousarray(energies.reshape(k, -1), np.float32))
    model.addPairwiseGaussian(sxy=1, compat=SMOOTHNESS)
    model.addPairwiseBilateral(sxy=REACH * POINTS, srgb=COLOUR, rgbim=image, compat=WEIGHT)
    return np.array(model.inference(iterations), np.float32).reshape(k, h, w)

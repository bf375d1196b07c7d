"""Label maps that follow the colours of the image: fully connected CRFs on the scores.

`ours` works at a few points of each patch and on scores of any scale; `program` is what the
authors' program does, at every pixel; `program_constant_guide` is what comes of its guide image in
one of its protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.geometry import Plan
from pipeline.maps.mean_field import Filter, gaussian, mean_field
from pipeline.maps.upsampling import at_grid, average, check_finite, label_map, upsample_argmax

POINTS = 7  # along the side of a patch, at which `ours` looks: half the pixels of a 14 px patch
SOFTNESS = 0.4  # of the softmax over clusters in `ours`, in leads of the best score over the second
FLOOR = 1e-5  # of a probability in `program`, as the package that it uses has it
HOPELESS = 0.25  # of 1 / K: a cluster that is less probable everywhere cannot win in `program`
TEMPERATURE = 0.3  # of the softmax over clusters in `program`, whose scores are logits

Refiner = Callable[[Tensor, int, int, np.ndarray], np.ndarray]


class Pairs(NamedTuple):
    """The two kernels over pairs of points, and how often the mean field is iterated."""

    smoothness: float  # weight of the kernel over places alone, one point wide
    weight: float  # of the kernel over places and colours
    reach: float  # points, its standard deviation over places
    colour: float  # of 255, over each of red, green and blue
    iterations: int


OURS = Pairs(smoothness=3.0, weight=5.0, reach=5.0 * POINTS, colour=13.0, iterations=5)
PROGRAM = Pairs(smoothness=3.0, weight=4.0, reach=67.0, colour=3.0, iterations=10)


def check_crf(crf: str, temperature: float | None) -> None:
    """Raise ValueError where a CRF is wanted that cannot be.

    Args:
        crf: a name of `CRFS`.
        temperature: of a softmax that the scores have passed; None = they are logits.
    """
    if crf.startswith("program") and temperature is not None:
        raise ValueError(
            f"the CRF `{crf}` puts logits through a softmax itself, found a softmax of temperature "
            f"{temperature} before it: leave the temperature out, or choose the CRF `ours`"
        )


def refined_map(
    plan: Plan,
    maps: Sequence[Tensor],
    image: np.ndarray | None = None,
    refiner: Refiner | None = None,
    *,
    temperature: float | None = TEMPERATURE,
) -> np.ndarray:
    """Return the cluster of every pixel: of a CRF, or without one of `upsampling.label_map`.

    Args:
        plan: of the image.
        maps: scores of each tile, float32 ``(K, rows, columns)``, higher is better.
        image: the photo, uint8 ``(H, W, 3)``, that a CRF looks at; None leaves the CRF out.
        refiner: one of `CRFS`; None is no CRF.
        temperature: of the softmax that makes the scores probabilities: `TEMPERATURE` for logits,
            1 for minus squared distances (the program), None for cosines, which the program does
            not know: a CRF gets them `as_logits`.

    Returns:
        uint16 ``plan.size``.
    """
    if refiner is None or image is None:
        return label_map(plan, maps)
    # `ours` looks at a few points of each patch, the program at every pixel.
    joined = at_grid(plan, maps) if refiner is ours else average(plan, maps)
    logits = as_logits(joined) if temperature is None else joined * (TEMPERATURE / temperature)
    return refiner(logits, *plan.size, plan.cut(image))


def ours(scores: Tensor, height: int, width: int, image: np.ndarray) -> np.ndarray:
    """Cluster ids at the pixels, from the mean field of a fully connected CRF at `POINTS` a patch.

    The model is Kraehenbuehl and Koltun's, whose pairs are all pairs of points of an image. Only
    clusters that are the best of some patch take part. Scores of predictors differ in scale
    (logits, cosines, distances), so they are divided by `lead`.

    Args:
        scores: float32 ``(K, h, w)`` at the patch grid, of any scale; higher is better.
        height, width: of the label map, px.
        image: uint8 ``(height, width, 3)``; another size is resized.

    Returns:
        uint16 ``(height, width)``.

    Raises:
        ValueError: a score is not finite.
    """
    best = upsample_argmax(scores, *scores.shape[1:])
    ids = np.unique(best)
    if len(ids) == 1:
        return np.full((height, width), ids[0], np.uint16)
    size = (scores.shape[1] * POINTS, scores.shape[2] * POINTS)
    winners = scores[torch.from_numpy(ids.astype(np.int64)).to(scores.device)].float()
    large = F.interpolate(winners[None], size, mode="bilinear")[0]
    logs = torch.log_softmax(large / (lead(scores) * SOFTNESS), dim=0)
    planes = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    small = F.interpolate(planes, size, mode="area")[0].round().byte()
    field = _refined(-logs, small.permute(1, 2, 0).numpy(), OURS)
    return ids[upsample_argmax(field, height, width)].astype(np.uint16)


def program(scores: Tensor, height: int, width: int, image: np.ndarray) -> np.ndarray:
    """Cluster ids as the authors' program refines them: logits -> pixels -> softmax -> mean field.

    At every pixel those clusters take part that can win somewhere. A cluster whose probability is
    below `HOPELESS` / K everywhere gains a factor near 1 from the pairs, so it stays below 1 / K,
    which the best one never is. Without it the others change by as little as it had.

    Arguments and result are those of `ours`, but the scores are logits, which `refined_map` makes
    of others.

    Raises:
        ValueError: a score is not finite, or the image is not of the size of the map.
    """
    if image.shape != (height, width, 3):
        raise ValueError(
            f"the CRF's guide image must have the size of the label map, ({height}, {width}, 3), "
            f"found {image.shape}: resize the image to the map"
        )
    logits = scores.detach().float() / TEMPERATURE
    check_finite(logits.cpu().numpy())
    large = F.interpolate(logits[None], (height, width), mode="bilinear")[0]
    likely = torch.softmax(large, dim=0)
    able = likely.amax(dim=(1, 2)) >= HOPELESS / len(likely)
    field = _refined(-likely[able].clamp(min=FLOOR).log(), image, PROGRAM)
    return able.nonzero()[:, 0][field.argmax(dim=0)].cpu().numpy().astype(np.uint16)


def program_constant_guide(
    scores: Tensor, height: int, width: int, image: np.ndarray
) -> np.ndarray:
    """Refine like `program`, with the guide image that it gets in the 320 px protocol.

    There colours in [0, 1] are cut to whole numbers: 1 where a channel is 255, else 0. So the
    kernel over places and colours is one over places alone, nearly everywhere.
    """
    return program(scores, height, width, image // 255)


CRFS: Mapping[str, Refiner | None] = {
    "none": None,
    "ours": ours,
    "program": program,
    "program_constant_guide": program_constant_guide,
}


def lead(scores: Tensor) -> Tensor:
    """A patch's best score less its second, on average over ``(K, h, w)``: their scale, above 0."""
    first, second = scores.topk(2, dim=0).values.float()
    return (first - second).mean().clamp(min=1e-12)


def as_logits(scores: Tensor) -> Tensor:
    """Scale cosines ``(K, h, w)`` like logits, so that they are as soft in `program` as in `ours`.

    The program has no cosines: its K-means is Euclidean.
    """
    return scores * (TEMPERATURE / (lead(scores) * SOFTNESS))


def _refined(energies: Tensor, image: np.ndarray, pairs: Pairs) -> Tensor:
    """Probabilities ``(K, h, w)`` of clusters at points, from energies and colours there."""
    k, h, w = energies.shape
    near = _near(h, w, energies.device)
    alike = _alike(image.tobytes(), h, w, pairs, energies.device)
    kernels = [(pairs.smoothness, near), (pairs.weight, alike)]
    points = energies.reshape(k, -1).T.contiguous()
    return mean_field(points, kernels, pairs.iterations).T.reshape(k, h, w)


@lru_cache(maxsize=2)
def _near(height: int, width: int, device: torch.device) -> Filter:
    """The kernel over places alone, the same for all images of a size."""
    return gaussian(_places(height, width, device), fuse=True)


@lru_cache(maxsize=2)  # photos: the predictors of one follow each other
def _alike(image: bytes, height: int, width: int, pairs: Pairs, device: torch.device) -> Filter:
    """The kernel over places and the colours, uint8 ``(height * width, 3)``."""
    colours = torch.frombuffer(bytearray(image), dtype=torch.uint8).reshape(-1, 3).to(device)
    places = _places(height, width, device) / pairs.reach
    return gaussian(torch.cat([places, colours / pairs.colour], dim=1))


def _places(height: int, width: int, device: torch.device) -> Tensor:
    """Columns and rows of the points of a map: float32 ``(height * width, 2)``."""
    y, x = (torch.arange(side, dtype=torch.float32, device=device) for side in (height, width))
    return torch.cartesian_prod(y, x).flip(1)

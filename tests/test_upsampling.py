"""Up-sampling of one score map against torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.geometry import Geometry, plan
from pipeline.maps.upsampling import label_map, label_map_of_all, upsample_argmax


def reference(scores: Tensor, height: int, width: int) -> Tensor:
    """All K maps interpolated by torch, float64 ``(K, height, width)``."""
    return F.interpolate(scores[None].double(), (height, width), mode="bilinear")[0]


def assert_is_argmax(found: np.ndarray, maps: Tensor) -> None:
    """Equal to the argmax, but where the two best scores differ by less than float32 resolves."""
    expected = maps.argmax(dim=0)
    best = maps.amax(dim=0)
    chosen = maps.gather(0, torch.from_numpy(found.astype(np.int64))[None])[0]
    resolution = 1e-6 * maps.abs().max()
    assert float((best - chosen).max()) <= resolution
    assert (torch.from_numpy(found.astype(np.int64)) != expected).float().mean() < 1e-3


SHAPES = [
    (8, 5, 7, 40, 63),
    (300, 6, 4, 50, 31),
    (12, 1, 9, 17, 90),
    (12, 9, 1, 90, 17),
    (5, 1, 1, 8, 9),
    (1, 3, 3, 10, 10),
    (20, 13, 11, 13, 11),
    (20, 13, 11, 7, 5),  # fewer pixels than patches
    (20, 4, 5, 1, 1),
]


@pytest.mark.parametrize(("k", "h", "w", "height", "width"), SHAPES)
@pytest.mark.parametrize("sharpness", [None, 1.0, 30.0])
def test_equals_torch(
    k: int, h: int, w: int, height: int, width: int, sharpness: float | None
) -> None:
    scores = torch.randn(k, h, w, generator=torch.Generator().manual_seed(k + h))
    if sharpness is not None:
        scores = torch.softmax(sharpness * scores, dim=0)
    found = upsample_argmax(scores, height, width)
    assert found.dtype == np.uint16
    assert found.shape == (height, width)
    assert_is_argmax(found, reference(scores, height, width))


def test_equals_torch_exactly_where_arithmetic_is_exact() -> None:
    """Small integers at a power of two have no rounding: ties count, and the lowest id wins."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (40, 9, 6), generator=generator).float()
    maps = reference(scores, 72, 48)
    best_two = maps.topk(2, dim=0).values
    assert (best_two[0] == best_two[1]).float().mean() > 0.05  # the ties are there
    np.testing.assert_array_equal(upsample_argmax(scores, 72, 48), maps.argmax(dim=0).numpy())


def test_smooth_scores_like_those_of_features() -> None:
    """Cosines to centres vary slowly: many clusters are near-equal within a cell."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 32, 3, 3, generator=generator)
    field = F.interpolate(coarse, (12, 14), mode="bicubic")[0].flatten(1)
    centres = F.normalize(torch.randn(256, 32, generator=generator), dim=1)
    scores = (centres @ F.normalize(field, dim=0)).reshape(256, 12, 14)
    assert_is_argmax(upsample_argmax(scores, 168, 196), reference(scores, 168, 196))


def test_result_does_not_depend_on_the_budget() -> None:
    scores = torch.randn(30, 3, 4, generator=torch.Generator().manual_seed(2))
    whole = upsample_argmax(scores, 61, 83)
    for budget in (1, 5000, 100_000):
        np.testing.assert_array_equal(upsample_argmax(scores, 61, 83, budget), whole)


def test_scores_that_are_not_finite_are_an_error() -> None:
    scores = torch.zeros(3, 2, 2)
    scores[1, 0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"must be finite, found NaN or infinity: check the head"):
        upsample_argmax(scores, 8, 8)


@pytest.mark.parametrize("window", [None, 48])
def test_the_way_of_a_gpu_gives_the_same_map(window: int | None) -> None:
    found = plan(Geometry(8, 64, window=window, stride=window and 24, aligned=False), 70, 101)
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(30, *grid, generator=generator) for grid in found.grids()]
    assert (len(scores) > 1) == bool(window)
    expected = label_map(found, scores)
    for budget in (1 << 20, 1 << 30):  # some clusters at a time, and all
        same = label_map_of_all(found, scores, budget) == expected
        assert same.mean() > 0.999 and len(np.unique(expected)) > 20
    scores[0][3, 1, 1] = torch.nan
    with pytest.raises(ValueError, match="must be finite"):
        label_map_of_all(found, scores, 1 << 20)

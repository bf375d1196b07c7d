"""Views: where they lie, their colours, and that anyone can make them again."""

from __future__ import annotations

import colorsys
import hashlib
from typing import Any

import numpy as np
import pytest

from pipeline.features.tiles import plan_tiles
from pipeline.features.views import (
    BRIGHTNESS,
    distort,
    plan_view,
    saturate,
    turn_hue,
    view_generator,
)

WHOLE: dict[str, Any] = {"patch": 8, "short_side": 96, "max_patches": 8192}
SHA = [hashlib.sha256(n.to_bytes(2)).hexdigest() for n in range(400)]


def tiles(height: int, width: int, **choices: Any) -> list:
    made = []
    for sha256 in SHA:
        generator = view_generator(0, sha256, 0, False)
        (tile,) = plan_view(height, width, **WHOLE, **choices, generator=generator)
        made.append(tile)
    return made


def test_a_view_without_changes_is_the_image() -> None:
    choices = {"scale": None, "crop": None, "flip": False}
    generator = view_generator(0, SHA[0], 3, False)
    found = plan_view(100, 151, **WHOLE, **choices, generator=generator)
    assert found == plan_tiles(100, 151, window=None, stride=None, **WHOLE)


def test_views_lie_anywhere_inside_at_every_scale() -> None:
    found = tiles(100, 150, scale=(0.5, 2.0), crop=83, flip=True)
    for tile in found:
        assert (tile.height, tile.width) == (min(80, tile.resized_h), min(80, tile.resized_w))
        assert 0 <= tile.top <= tile.resized_h - tile.height
        assert 0 <= tile.left <= tile.resized_w - tile.width
        assert abs(min(tile.resized_h, tile.resized_w) - 96 * tile.scale) <= 4.5
    scales = [tile.scale for tile in found]
    assert min(scales) < 0.52 and max(scales) > 1.98 and 1.15 < np.mean(scales) < 1.35  # uniform
    assert 0.4 < np.mean([tile.flip for tile in found]) < 0.6
    free = [tile for tile in found if tile.resized_w > tile.width]
    assert min(t.left for t in free) == 0
    assert max(t.left - (t.resized_w - t.width) for t in free) == 0
    assert any(tile.left % 8 for tile in free)


def test_a_large_view_is_cut_and_covered() -> None:
    choices: dict[str, Any] = {"scale": (2.0, 2.0), "crop": None, "flip": False}
    few = {**WHOLE, "max_patches": 100}
    generator = view_generator(0, SHA[0], 0, False)
    found = plan_view(100, 100, **few, **choices, generator=generator)
    assert found == plan_tiles(100, 100, window=None, stride=None, scale=2.0, **few)
    assert len(found) > 1
    choices["crop"] = 64
    assert len(plan_view(100, 100, **few, **choices, generator=generator)) == 1


@pytest.mark.parametrize(("key", "text"), [("crop", "a crop must"), ("short_side", "short side")])
def test_less_than_a_patch_is_refused(key: str, text: str) -> None:
    choices = {**WHOLE, "scale": None, "crop": 64, "flip": False, key: 7}
    with pytest.raises(ValueError, match=rf"{text}.*\(8 px\), found 7 px"):
        plan_view(100, 100, **choices, generator=np.random.default_rng(0))


def test_what_is_drawn_follows_from_seed_image_and_view() -> None:
    draws = [
        view_generator(seed, SHA[image], view, colours).random()
        for seed in (0, 1) for image in (0, 1) for view in (0, 1) for colours in (False, True)
    ]  # fmt: skip
    assert len(set(draws)) == 16
    assert view_generator(1, SHA[1], 1, True).random() == draws[-1]


def test_hue_and_saturation_are_those_of_hsv() -> None:
    pixels = np.random.default_rng(0).random((3, 50)).astype(np.float32)
    pixels[:, 0], pixels[:, 1] = 0.0, 0.5  # black and grey have no hue
    turned, stronger = turn_hue(pixels, 200.0), saturate(pixels, 1.4)
    for n in range(50):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixels[:, n].tolist())
        wanted = colorsys.hsv_to_rgb((hue + 200 / 360) % 1, saturation, value)
        np.testing.assert_allclose(turned[:, n], wanted, atol=1e-5)
        wanted = colorsys.hsv_to_rgb(hue, min(1.4 * saturation, 1), value)
        np.testing.assert_allclose(stronger[:, n], wanted, atol=1e-5)
    np.testing.assert_allclose(saturate(pixels, 0.0), np.tile(pixels.max(axis=0), (3, 1)))


def test_distortion_keeps_to_its_bounds_and_its_argument() -> None:
    pixels = np.full((3, 4, 4), 0.5, np.float32)
    pixels[0] = 0.6
    before = pixels.copy()
    means = []
    for sha256 in SHA:
        found = distort(pixels, 1.0, view_generator(0, sha256, 0, True))
        assert found.dtype == np.float32 and found.shape == pixels.shape
        assert found.min() >= 0 and found.max() <= 1
        means.append(found.max())
        same = distort(pixels, 0.0, view_generator(0, sha256, 0, True))
        np.testing.assert_allclose(same, pixels, atol=1e-6)
    np.testing.assert_array_equal(pixels, before)
    assert min(means) >= (0.6 - BRIGHTNESS) * 0.5 - 1e-6
    assert min(means) < 0.35 and max(means) > 0.9
    assert 0.1 < np.mean(np.isclose(means, 0.6)) < 0.4  # neither brightness nor contrast: a quarter

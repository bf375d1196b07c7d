"""Colours of views, and that anyone can make them again."""

from __future__ import annotations

import colorsys
import hashlib

import numpy as np

from pipeline.features.views import (
    BRIGHTNESS,
    distort,
    saturate,
    turn_hue,
    view_generator,
)

SHA = [hashlib.sha256(n.to_bytes(2)).hexdigest() for n in range(400)]


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

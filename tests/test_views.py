"""Colours of views, and that anyone can make them again."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from pipeline.features import views
from pipeline.features.views import CHANGES, distort, view_generator

SHA = [hashlib.sha256(n.to_bytes(2)).hexdigest() for n in range(400)]


def test_what_is_drawn_follows_from_seed_image_and_view() -> None:
    draws = [
        view_generator(seed, SHA[image], view, colours).random()
        for seed in (0, 1) for image in (0, 1) for view in (0, 1) for colours in (False, True)
    ]  # fmt: skip
    assert len(set(draws)) == 16
    assert view_generator(1, SHA[1], 1, True).random() == draws[-1]


def by_pillow(pixels: np.ndarray, number: int, amount: float) -> np.ndarray:
    """One change of colours as Pillow makes it, in steps of 1/255."""
    image = Image.fromarray((pixels.transpose(1, 2, 0) * 255).round().astype(np.uint8))
    if number < 3:
        change = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[number]
        image = change(image).enhance(1 + amount)
    else:
        hue, saturation, value = image.convert("HSV").split()
        turned = (np.asarray(hue).astype(int) + round(amount * 255)) % 256
        parts = (Image.fromarray(turned.astype(np.uint8)), saturation, value)
        image = Image.merge("HSV", parts).convert("RGB")
    return np.asarray(image).transpose(2, 0, 1) / 255


@pytest.mark.parametrize(("number", "greatest"), [*enumerate((32 / 255, 0.5, 0.5, 0.1))])
def test_each_change_of_colours_is_pillows(
    number: int, greatest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).random((3, 20, 30)).astype(np.float32)
    assert CHANGES[number][2] == pytest.approx(greatest)
    kept = {n: (lambda image, _: image, 0.0, 0.0) for n in range(4) if n != number}
    monkeypatch.setattr(views, "CHANGES", {**kept, number: CHANGES[number]})
    amounts = set()
    for sha256 in SHA[:20]:
        found = distort(pixels, 2.0, view_generator(0, sha256, 0, True))
        draws = view_generator(0, sha256, 0, True)
        drawn, amount = (draws.random(4) < 0.5)[number], draws.uniform(-1, 1, 4)[number]
        expected = by_pillow(pixels, number, 2 * greatest * amount if drawn else 0.0)
        off = np.abs(found - expected)
        assert np.median(off) < 0.01 and off.max() < (0.1 if number == 3 else 0.02)
        amounts.add(amount if drawn else 0.0)
    assert len(amounts) > 5


def test_contrast_comes_first_or_last(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def note(number: int) -> Any:
        return lambda image, _: (calls.append(number), image)[1], 1.0, 1.0

    monkeypatch.setattr(views, "CHANGES", [note(number) for number in range(4)])
    orders = set()
    for sha256 in SHA:
        calls.clear()
        distort(np.zeros((3, 2, 2), np.float32), 1.0, view_generator(0, sha256, 0, True))
        orders.add(tuple(calls))
    whole = {order for order in orders if len(order) == 4}
    assert whole == {(0, 1, 2, 3), (0, 2, 3, 1)}
    assert {len(order) for order in orders} == {0, 1, 2, 3, 4}


def test_distortion_keeps_to_its_bounds_and_its_argument() -> None:
    pixels = np.random.default_rng(0).random((3, 8, 8)).astype(np.float32)
    before = pixels.copy()
    for sha256 in SHA[:50]:
        found = distort(pixels, 2.0, view_generator(0, sha256, 0, True))
        assert found.dtype == np.float32 and found.shape == pixels.shape
        assert found.min() >= 0 and found.max() <= 1
        again = distort(pixels, 2.0, view_generator(0, sha256, 0, True))
        np.testing.assert_array_equal(found, again)
        same = distort(pixels, 0.0, view_generator(0, sha256, 0, True))
        np.testing.assert_allclose(same, pixels, atol=1e-6)
    np.testing.assert_array_equal(pixels, before)

"""Views: where they lie, their colours, and that anyone can make them again."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from pipeline.features import views
from pipeline.features.tiles import plan_tiles
from pipeline.features.views import CHANGES, distort, plan_view, view_generator

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

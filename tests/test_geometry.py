"""Plans of images: where tiles lie, what is cut, how scores become label maps."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from pipeline.features.views import view_generator
from pipeline.geometry import (
    Geometry,
    Plan,
    grid,
    place_windows,
    plan,
    plan_resized_crop,
    plan_view,
    resize,
)
from pipeline.maps import upsampling
from pipeline.maps.upsampling import at_grid, average, label_map

WHOLE = Geometry(patch=14, short_side=364)
SMALL = Geometry(patch=8, short_side=96)
SLIDING = Geometry(8, 37, None, 22, 15, aligned=False)
RESIZED = (37, 53)
SHA = [hashlib.sha256(n.to_bytes(2)).hexdigest() for n in range(400)]


def test_the_resized_image_keeps_the_aspect_in_whole_patches() -> None:
    assert plan(WHOLE, 360, 480).resized == (364, 490)
    assert plan(WHOLE, 480, 360).resized == (490, 364)
    assert plan(WHOLE, 3, 3).resized == (364, 364)  # an image smaller than a patch


@pytest.mark.parametrize(
    ("height", "width"), [(360, 480), (1, 1), (5, 4000), (4000, 5), (2000, 1300)]
)
@pytest.mark.parametrize("window", [None, 128, 200])
def test_aligned_tiles_cover_every_patch_and_stay_inside(
    height: int, width: int, window: int | None
) -> None:
    found = plan(WHOLE._replace(window=window, stride=window and window - 50), height, width)
    seen = np.zeros(grid((0, 0, *found.resized), 14), bool)
    for tile in found.tiles:
        assert not any(side % 14 for side in tile)
        top, left, rows, columns = (side // 14 for side in tile)
        assert (rows, columns) == grid(tile, 14) and rows * columns <= 8192
        assert top + rows <= seen.shape[0] and left + columns <= seen.shape[1]
        seen[top : top + rows, left : left + columns] = True
    assert seen.all()
    assert found.size == (height, width)
    assert found.canvas == ((height, width) if len(found.tiles) == 1 else found.resized)


def test_aligned_windows_are_where_the_paper_puts_them() -> None:
    found = plan(WHOLE._replace(window=364, stride=224), 364, 700)
    assert [left for _, left, *_ in found.tiles] == [0, 224, 336]


def test_less_than_a_patch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"short side .* one patch \(14 px\), found 8 px"):
        plan(WHOLE._replace(short_side=8), 100, 100)
    with pytest.raises(ValueError, match=r"window and stride .* found 9 and 9 px"):
        plan(WHOLE._replace(window=9, stride=9), 100, 100)
    draw: dict[str, Any] = {"scale": None, "flip": False, "generator": np.random.default_rng(0)}
    with pytest.raises(ValueError, match=r"a crop must.*\(8 px\), found 7 px"):
        plan_view(SMALL, 100, 100, crop=7, **draw)


def test_windows_lie_where_sliding_inference_puts_them() -> None:
    geometry = Geometry(16, 1024, None, 768, 512, aligned=False)
    tiles = plan(geometry, 1024, 2048).tiles
    assert [top for top, left, *_ in tiles if left == 0] == [0, 256]
    assert [left for top, left, *_ in tiles if top == 0] == [0, 512, 1024, 1280]
    assert {(height, width) for *_, height, width in tiles} == {(768, 768)}
    few = plan(Geometry(16, 520, None, 480, 320, aligned=False), 375, 500).tiles
    assert [tile[:2] for tile in few] == [(0, 0), (0, 213), (40, 0), (40, 213)]
    (one,) = plan(Geometry(16, 300, None, 480, 320, aligned=False), 100, 100).tiles
    assert one == (0, 0, 300, 300)


@pytest.mark.parametrize("side", [480, 481, 799, 800, 801, 1000, 1121])
def test_windows_are_as_many_as_the_formula_says(side: int) -> None:
    window, stride = 480, 320
    count = max(side - window + stride - 1, 0) // stride + 1
    expected = [min(i * stride, side - window) for i in range(count)]
    assert [left for _, left, *_ in place_windows(480, side, window, stride)] == expected


def views(height: int, width: int, **choices: Any) -> list[Plan]:
    return [
        plan_view(SMALL, height, width, **choices, generator=view_generator(0, sha256, 0, False))
        for sha256 in SHA
    ]


def test_a_view_without_changes_is_the_image() -> None:
    draws = view_generator(0, SHA[0], 3, False)
    found = plan_view(SMALL, 100, 151, scale=None, crop=None, flip=False, generator=draws)
    assert found == plan(SMALL, 100, 151)


def test_views_lie_anywhere_inside_at_every_scale() -> None:
    found = views(100, 150, scale=(0.5, 2.0), crop=83, flip=True)
    for view in found:
        ((top, left, height, width),) = view.tiles
        assert (height, width) == tuple(min(80, side) for side in view.resized)
        assert 0 <= top <= view.resized[0] - height
        assert 0 <= left <= view.resized[1] - width
    shorter = [min(view.resized) for view in found]
    assert min(shorter) <= 56 and max(shorter) >= 184 and 110 < np.mean(shorter) < 130  # uniform
    assert 0.4 < np.mean([view.flip for view in found]) < 0.6
    free = [(v.tiles[0], v.resized[1]) for v in found if v.resized[1] > v.tiles[0][3]]
    assert min(tile[1] for tile, _ in free) == 0
    assert max(tile[1] - (wide - tile[3]) for tile, wide in free) == 0
    assert any(tile[1] % 8 for tile, _ in free)


def test_a_large_view_is_cut_and_covered() -> None:
    few, draws = SMALL._replace(most=100), view_generator(0, SHA[0], 0, False)
    found = plan_view(few, 100, 100, scale=(2.0, 2.0), crop=None, flip=False, generator=draws)
    assert found == plan(few._replace(short_side=192), 100, 100)
    assert len(found.tiles) > 1
    cut = plan_view(few, 100, 100, scale=(2.0, 2.0), crop=64, flip=False, generator=draws)
    assert len(cut.tiles) == 1


def test_the_crop_of_a_label_is_that_of_the_image() -> None:
    geometry = Geometry(16, 320, 320, aligned=False)
    found = plan(geometry, 375, 500)
    assert found.resized == (320, 427) and found.tiles == [(0, 53, 320, 320)]
    assert found.size == found.canvas == (320, 320)
    half = plan(geometry, 640, 960)  # the centre of each pixel lies at 2 i + 1
    label = np.arange(640 * 960, dtype=np.int64).reshape(640, 960)
    np.testing.assert_array_equal(half.cut_label(label), label[1::2, 1::2][:, 80:400])
    image = np.random.default_rng(0).integers(0, 255, (640, 960, 3)).astype(np.uint8)
    np.testing.assert_array_equal(half.cut(image), resize(image, 320, 480)[:, 80:400])
    whole = plan(WHOLE, 640, 960)
    assert whole.cut_label(label) is label and whole.cut(image) is image


def test_images_are_resized_by_pillow() -> None:
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    expected = Image.fromarray(image).resize((128, 96), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resize(image, 96, 128), np.asarray(expected))


def test_pixels_of_tiles_are_whole_patches_and_mirrored() -> None:
    image = np.random.default_rng(0).integers(0, 255, (50, 77, 3)).astype(np.uint8)
    found = plan(SMALL._replace(short_side=40, window=24, stride=16), 50, 77)
    resized = resize(image, *found.resized)
    pixels, mirrored = found.tile_pixels(image), found._replace(flip=True).tile_pixels(image)
    assert len(pixels) > 4
    for (top, left, height, width), plain, other in zip(found.tiles, pixels, mirrored, strict=True):
        expected = resized[top : top + height, left : left + width].transpose(2, 0, 1) / 255
        np.testing.assert_allclose(plain.numpy(), expected, atol=1e-6)
        np.testing.assert_array_equal(other.flip(2).numpy(), plain.numpy())
    (odd,) = plan(Geometry(8, 37, 37, aligned=False), 37, 53).tile_pixels(image[:37, :53])
    assert odd.shape == (3, 40, 40) and float(odd.min()) >= 0 and float(odd.max()) <= 1


def scored(clusters: int = 7) -> tuple[Plan, list[torch.Tensor]]:
    """A sliding plan and random scores of its windows."""
    generator = torch.Generator().manual_seed(0)
    found = plan(SLIDING, *RESIZED)
    shape = (clusters, 5, 6)  # no grid of these windows: any is interpolated to their pixels
    return found, [torch.randn(shape, generator=generator) for _ in found.tiles]


def dense(found: Plan, scores: list[torch.Tensor]) -> torch.Tensor:
    """The averaged maps, pixel by pixel in float64."""
    sums = torch.zeros(len(scores[0]), *found.resized, dtype=torch.float64)
    counts = torch.zeros(found.resized, dtype=torch.float64)
    for maps, (top, left, height, width) in zip(scores, found.tiles, strict=True):
        large = interpolate(maps[None].double(), (height, width), mode="bilinear")[0]
        for y in range(height):
            for x in range(width):
                sums[:, top + y, left + x] += large[:, y, x]
                counts[top + y, left + x] += 1
    return sums / counts


def test_windows_are_averaged_in_pixels() -> None:
    found, scores = scored()
    torch.testing.assert_close(
        average(found, scores).double(), dense(found, scores), atol=1e-5, rtol=1e-5
    )
    assert at_grid(found, scores).shape == (7, 5, 7)


@pytest.mark.parametrize("size", [RESIZED, (61, 90), (20, 31)])
@pytest.mark.parametrize("budget", [1, 64 << 20])
def test_the_label_map_is_the_argmax_of_the_averages(size: tuple[int, int], budget: int) -> None:
    found, scores = scored()
    expected = interpolate(dense(found, scores)[None], size, mode="bilinear")[0].argmax(0).numpy()
    ids = label_map(found._replace(size=size), scores, budget)
    assert ids.dtype == np.uint16 and len(np.unique(ids)) > 1
    np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize("side", [1, 5, 16, 64])
@pytest.mark.parametrize("size", [RESIZED, (20, 31), (75, 100)])
def test_clusters_that_cannot_win_in_a_block_change_nothing(
    size: tuple[int, int], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Smooth scores, where few can win: what windows say of a place is alike, but not equal."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(60, 8, generator=generator)
    field = interpolate(torch.randn(1, 8, 3, 4, generator=generator), RESIZED, mode="bicubic")[0]
    found, random = scored()
    scores = []
    for maps, (top, left, height, width) in zip(random, found.tiles, strict=True):
        part = field[None, :, top : top + height, left : left + width]
        tokens = interpolate(part, maps.shape[1:], mode="bilinear")[0]
        tokens += 0.1 * torch.randn(8, 1, 1, generator=generator)
        scores.append(torch.einsum("kc,chw->khw", centres, tokens))
    left_over = []
    able = upsampling._able
    monkeypatch.setattr(upsampling, "SIDE", side)
    monkeypatch.setattr(
        upsampling, "_able", lambda *given: left_over.append(able(*given)) or left_over[-1]
    )
    expected = interpolate(dense(found, scores)[None], size, mode="bilinear")[0].argmax(0).numpy()
    np.testing.assert_array_equal(label_map(found._replace(size=size), scores), expected)
    assert side > 5 or np.mean([len(ids) for ids in left_over]) < 30


def test_the_lowest_of_equal_clusters_wins() -> None:
    found, scores = scored()
    same = [maps[[3, 3, 1, 1, 3, 5, 5, 1]] for maps in scores]
    ids = label_map(found._replace(size=(75, 100)), same)
    assert set(np.unique(ids)) == {0, 2, 5}


def test_windows_must_cover_the_image() -> None:
    found, scores = scored()
    fewer = found._replace(tiles=found.tiles[:-1])
    for function in (average, label_map):
        with pytest.raises(ValueError, match=r"must cover it, found \d+ of 1961 pixels"):
            function(fewer, scores[:-1])


@pytest.mark.parametrize("window", [None, 40])
def test_a_plan_of_one_tile_is_plain_interpolation(window: int | None) -> None:
    """Several aligned windows of a smooth field give nearly the same map."""
    generator = torch.Generator().manual_seed(1)
    found = plan(SMALL._replace(window=window, stride=window and 24), 230, 310)
    rows, columns = (side // 8 for side in found.resized)
    field = interpolate(torch.randn(1, 9, 4, 5, generator=generator), (rows, columns),
                        mode="bicubic")[0]  # fmt: skip
    tiles = [[side // 8 for side in tile] for tile in found.tiles]
    scores = [field[:, t : t + h, c : c + w] for t, c, h, w in tiles]
    expected = interpolate(field[None].double(), (230, 310), mode="bilinear")[0].argmax(0).numpy()
    same = (label_map(found, scores) == expected).mean()
    assert same == 1 if window is None else same > 0.97
    torch.testing.assert_close(
        at_grid(found, scores), field, atol=1e-5 if window is None else 0.7, rtol=0
    )


def test_resized_crops_show_shares_of_the_image_at_the_size_of_the_crop() -> None:
    height, width, shares, aspects, flips = 375, 500, [], [], 0
    for number in range(200):
        before = torch.random.get_rng_state()
        found = plan_resized_crop(
            Geometry(14, 520), height, width, area=(0.08, 1.0), crop=224, flip=True,
            generator=np.random.default_rng(number),
        )  # fmt: skip
        assert torch.equal(torch.random.get_rng_state(), before)
        ((top, left, tall, wide),) = found.tiles
        assert (tall, wide) == (224, 224) and found.grids() == [(16, 16)]
        assert 0 <= top <= found.resized[0] - tall and 0 <= left <= found.resized[1] - wide
        shown = height * tall / found.resized[0], width * wide / found.resized[1]
        shares.append(shown[0] * shown[1] / (height * width))
        aspects.append(shown[1] / shown[0])
        flips += found.flip
    assert 0.079 < min(shares) < 0.12 and 0.9 < max(shares) <= 1.0
    assert 0.74 < min(aspects) < 0.8 and 1.25 < max(aspects) < 1.35
    # Large shares that do not fit at their aspect are drawn again.
    assert np.mean(shares) == pytest.approx(0.45, abs=0.06) and 70 < flips < 130

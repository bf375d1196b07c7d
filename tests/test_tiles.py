"""Planning of tiles, chunks and shards."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipeline.features.tiles import chunk_tokens, plan_layout, plan_tiles, resized_shape

DEFAULTS = {"patch": 14, "short_side": 364, "window": None, "stride": None, "max_patches": 8192}


def test_resized_shape_keeps_the_aspect_and_whole_patches() -> None:
    assert resized_shape(360, 480, 364, 14) == (364, 490)
    assert resized_shape(480, 360, 364, 14) == (490, 364)
    assert resized_shape(3, 3, 364, 14) == (364, 364)  # an image smaller than a patch


@pytest.mark.parametrize(
    ("height", "width"), [(360, 480), (1, 1), (5, 4000), (4000, 5), (2000, 1300)]
)
@pytest.mark.parametrize("window", [None, 128, 200])
def test_tiles_cover_every_patch_and_stay_inside(
    height: int, width: int, window: int | None
) -> None:
    choices = {**DEFAULTS, "window": window, "stride": window and window - 50}
    tiles = plan_tiles(height, width, **choices)
    full_h, full_w = tiles[0].resized_h, tiles[0].resized_w
    seen = np.zeros((full_h // 14, full_w // 14), bool)
    for tile in tiles:
        assert (tile.resized_h, tile.resized_w) == (full_h, full_w)
        assert not any(side % 14 for side in (tile.top, tile.left, tile.height, tile.width))
        assert tile.top + tile.height <= full_h and tile.left + tile.width <= full_w
        assert tile.height // 14 * (tile.width // 14) <= 8192
        seen[tile.top // 14 : (tile.top + tile.height) // 14][
            :, tile.left // 14 : (tile.left + tile.width) // 14
        ] = True
    assert seen.all()


def test_windows_are_where_the_paper_puts_them() -> None:
    tiles = plan_tiles(364, 700, **{**DEFAULTS, "window": 364, "stride": 224})
    assert [tile.left for tile in tiles] == [0, 224, 336]


def test_a_side_below_one_patch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"short side .* one patch \(14 px\), found 8 px"):
        plan_tiles(100, 100, **{**DEFAULTS, "short_side": 8})
    with pytest.raises(ValueError, match=r"window and stride .* found 9 and 9 px"):
        plan_tiles(100, 100, **{**DEFAULTS, "window": 9, "stride": 9})


def test_chunk_is_the_tile_size_where_all_agree() -> None:
    assert chunk_tokens([910] * 50) == 910
    assert chunk_tokens([910] * 50 + [676]) == 910


@pytest.mark.parametrize("seed", range(5))
def test_layout_never_overlaps_nor_straddles(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = generator.choice([910, 676, 1014, 35], 100).tolist()
    layout = plan_layout(sizes, 4096)
    spans = sorted((start, start + size) for start, size in zip(layout.starts, sizes, strict=True))
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert spans[-1][1] <= layout.shards * layout.shard
    assert all(start % layout.chunk == 0 for start in layout.starts)
    assert layout.shard % layout.chunk == 0
    for start, end in spans:
        assert start // layout.shard == (end - 1) // layout.shard


def test_a_tiny_data_set_makes_no_large_shard() -> None:
    layout = plan_layout([48, 48, 48], 32768)
    assert (layout.shard, layout.shards) == (144, 1)

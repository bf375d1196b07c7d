"""The cache's files are Zarr's, damage in them is found, int8 keeps within its error bound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from cache import feature_writer, features
from cache.features import Features
from cache.store import int8
from cache.store.errors import InputError
from cache.store.shards import Shards, shard_file
from pipeline.features.tiles import plan_layout

# Chunks of 20 slots, two to a shard: full ones, one with a gap, one left out, a tile of two chunks.
GRIDS = [(4, 5)] * 4 + [(2, 3), (4, 5), (4, 5), (5, 6), (4, 5), (4, 5)]
CHANNELS = {"block_00": 8, "block_11": 4}


def make_cache(root: Path, dtype: str) -> tuple[Features, dict[str, np.ndarray]]:
    """A cache of tiles of several sizes and the float16 values put into it, NaN in the gaps."""
    layout = plan_layout([h * w for h, w in GRIDS], 50)
    table = np.zeros(len(GRIDS), features.TILE_FIELDS)
    table["grid_h"], table["grid_w"] = np.array(GRIDS).T
    table["start"] = layout.starts
    store, done = root / "features.zarr", root / "done"
    channels = {**CHANNELS, "rgb": 3}
    todo = feature_writer.declare(store, done, channels, dtype, table, *layout[1:])
    assert len(todo) == layout.shards > 2
    assert layout.shard == 2 * layout.chunk and max(h * w for h, w in GRIDS) > layout.chunk
    generator = np.random.default_rng(0)
    values = {}
    for name, width in channels.items():
        values[name] = np.full((layout.shards * layout.shard, width), np.nan, np.float16)
        for row in table:
            end = row["start"] + row["grid_h"] * row["grid_w"]
            drawn = generator.standard_normal((end - row["start"], width))
            values[name][row["start"] : end] = drawn * 10.0 ** generator.integers(-3, 4, width)
    for shard in todo:
        part = slice(shard * layout.shard, (shard + 1) * layout.shard)
        feature_writer.write_shard(store, done, shard, {n: v[part] for n, v in values.items()})
    levels = {"first": "block_00", "last": "block_11"}
    manifest = {"levels": levels, "channels": channels, "fingerprint": "first"}
    feature_writer.finish(store, done, layout.shards, manifest)
    return Features.open(store), values


def rows_of(cache: Features, values: np.ndarray, tile: int) -> np.ndarray:
    start = int(cache.tiles[tile]["start"])
    return values[start : start + cache.size(tile)]


def test_zarr_reads_what_is_written_and_the_other_way_round(tmp_path: Path) -> None:
    cache, values = make_cache(tmp_path, "float16")
    for name, expected in values.items():
        array = zarr.open_array(cache.path, path=name, mode="r+")
        assert np.array_equal(np.asarray(array), expected, equal_nan=True)
        ours = {shard: shard_file(cache.path, name, shard).read_bytes() for shard in range(2)}
        slots = array.shards[0]
        array[: 2 * slots] = np.arange(2 * slots * array.shape[1]).reshape(2 * slots, -1)
        shards = Shards(cache.path, name)
        assert np.array_equal(shards.read(1), np.asarray(array[shards.chunk : 2 * shards.chunk]))
        array[: 2 * slots] = expected[: 2 * slots]
        assert not np.isnan(expected[: 2 * slots]).any()
        for shard, content in ours.items():
            assert shard_file(cache.path, name, shard).read_bytes() == content


def test_a_chunk_that_zarr_left_out_is_the_fill_value(tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "block", shape=(8, 3), chunks=(2, 3), shards=(8, 3), dtype="float16",
        fill_value=np.nan, compressors=[zarr.codecs.Crc32cCodec()],
    )  # fmt: skip
    array[2:4] = 7
    shards = Shards(tmp_path, "block")
    assert np.isnan(shards.read(0)).all() and (shards.read(1) == 7).all()


def test_a_batch_holds_tiles_below_each_other_and_levels_side_by_side(tmp_path: Path) -> None:
    cache, values = make_cache(tmp_path, "float16")
    tiles = [6, 0, 4, 2]
    columns = [
        np.concatenate([rows_of(cache, values[name], tile) for tile in tiles])
        for name in ("block_11", "block_00")
    ]
    found = cache.batch(["last", "first"], np.array(tiles))
    assert found.dtype == np.float16
    assert np.array_equal(found, np.concatenate(columns, axis=1))
    assert np.array_equal(cache.tokens("last", 2), rows_of(cache, values["block_11"], 2))


def make_second(cache: Features, root: Path, made_from: str) -> np.ndarray:
    """A second cache with one level, ``made``, in the layout of the first; its values."""
    chunk, shard, shards = cache.layout()
    store, done = root / "second.zarr", root / "second-done"
    feature_writer.declare(store, done, {"made": 3}, "float16", cache.tiles, chunk, shard, shards)
    values = np.random.default_rng(1).standard_normal((shards * shard, 3)).astype(np.float16)
    for number in range(shards):
        part = values[number * shard : (number + 1) * shard]
        feature_writer.write_shard(store, done, number, {"made": part})
    manifest = {"levels": {"made": "made"}, "channels": {"made": 3}}
    ids = {"features": made_from, "fingerprint": "second"}
    feature_writer.finish(store, done, shards, {**manifest, **ids})
    return values


def test_the_levels_of_a_second_cache_stand_beside_those_of_the_first(tmp_path: Path) -> None:
    cache, values = make_cache(tmp_path, "float16")
    values["made"] = make_second(cache, tmp_path, "first")
    wider = cache.beside(tmp_path / "second.zarr")
    assert (wider.channels("made"), wider.channels("last")) == (3, 4)
    assert wider.fingerprint not in (cache.fingerprint, "second")
    tiles = [6, 0, 4, 2]
    names = ("block_11", "made", "block_00")
    expected = [
        np.concatenate([rows_of(cache, values[name], tile) for name in names], axis=1)
        for tile in tiles
    ]
    both = wider.batch(["last", "made", "first"], np.array(tiles))
    assert both.dtype == np.float16 and np.array_equal(both, np.concatenate(expected))
    assert np.array_equal(wider.tokens("made", 4), expected[2][:, 4:7])
    # The cache that it was made from knows nothing of it, and unknown levels stay unknown.
    text = r"holds the levels first, last, not {}: add it to `extract.blocks`"
    for read in (cache.channels, lambda level: cache.batch(["last", level], [0])):
        with pytest.raises(InputError, match=text.format("made")):
            read("made")
    with pytest.raises(InputError, match="not middle: add it"):
        wider.batch(["made", "middle"], [0])
    shard_file(tmp_path / "second.zarr", "made", 0).unlink()
    with pytest.raises(InputError, match=r"second.zarr: made lacks .* run `dvc repro context`"):
        wider.tokens("made", 0)


def test_a_second_cache_of_another_first_one_is_refused(tmp_path: Path) -> None:
    cache, _ = make_cache(tmp_path, "float16")
    make_second(cache, tmp_path, "another")
    with pytest.raises(InputError, match=r"was made from another feature cache \(another"):
        cache.beside(tmp_path / "second.zarr")


def test_int8_is_within_half_a_step_of_each_chunk(tmp_path: Path) -> None:
    cache, values = make_cache(tmp_path, "int8")
    for tile in range(len(GRIDS)):
        exact = rows_of(cache, values["block_00"], tile).astype(np.float64)
        found = cache.tokens("first", tile)
        step = np.abs(exact).max(axis=0) / 127
        rounding = np.spacing(np.abs(found)).astype(np.float64)
        assert (np.abs(found - exact) <= step / 2 + rounding).all()
    assert np.array_equal(cache.rgb(3), rows_of(cache, values["rgb"], 3).astype(np.float32))


def test_int8_of_zeros_and_of_nothing() -> None:
    values = np.zeros((6, 2), np.float16)
    values[2:4, 1] = [-127, 254]
    values[4:] = np.nan
    quantised, scale = int8.encode(values, 2)
    assert quantised.tolist() == [[0, 0], [0, 0], [0, -64], [0, 127], [0, 0], [0, 0]]
    assert scale[:2].tolist() == [[0, 0], [0, 2]] and np.isnan(scale[2]).all()
    assert not int8.decode(quantised[:2], scale[:1]).any()
    assert np.isnan(int8.decode(quantised[4:], scale[2:])).all()


@pytest.mark.parametrize("name", ["block_00", "block_00_scale"])
def test_every_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    cache, _ = make_cache(tmp_path, "int8")
    file = shard_file(cache.path, name, 0)
    whole = file.read_bytes()
    for place in (0, 9, len(whole) - 21, len(whole) - 5, len(whole) - 1):
        flipped = bytearray(whole)
        flipped[place] ^= 16
        file.write_bytes(flipped)
        with pytest.raises(InputError, match=r"damaged at tile .*crc32c .* must be .* found"):
            cache.batch(["first"], range(3))
    for length in (0, 7, len(whole) // 2):
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match="a shard of block_00 is damaged at tile 0"):
            cache.tokens("first", 0)


def test_values_that_are_not_finite_are_found(tmp_path: Path) -> None:
    for value in (np.nan, -np.nan, np.inf, -np.inf):
        found = np.array([[1, -65504], [value, 65504]], np.float16)
        assert not features.finite(found) and features.finite(found[:1])
    cache, values = make_cache(tmp_path, "float16")
    shards = Shards(cache.path, "block_00")
    slots = zarr.open_array(cache.path, path="block_00").shards[0]
    torn = values["block_00"][:slots].copy()
    torn[1, 1] = np.nan
    shards.write(0, torn)
    with pytest.raises(InputError, match="block_00 has NaN or infinite values at tile 0: delete"):
        cache.tokens("first", 0)

"""Planning of chunks and shards."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipeline.features.tiles import chunk_tokens, plan_layout


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

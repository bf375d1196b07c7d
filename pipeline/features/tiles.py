"""Planning of tiles and shards: pure arithmetic on sizes, apart from the code that moves data.

A tile is a window of a resized image. Whole images, sliding windows and (mirrored or scaled) views
are all tiles; what follows the extraction knows nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


def chunk_tokens(sizes: Sequence[int]) -> int:
    """Slots in one chunk of the cache, for tiles of these sizes (in patches).

    A tile starts at a chunk, so that reading it touches no other tile. The chunk is the size that
    wastes least to padding, where a further chunk costs as much as 64 slots.
    """
    counts = Counter(sizes)
    candidates = [size for size, _ in counts.most_common(64)]

    def cost(chunk: int) -> int:
        chunks = sum(-(-size // chunk) * count for size, count in counts.items())
        return chunks * (chunk + 64)

    return min(candidates, key=lambda chunk: (cost(chunk), chunk))


class Layout(NamedTuple):
    """Places of tiles in the cache: ``starts[i]`` is the first slot of tile i."""

    starts: list[int]
    chunk: int
    shard: int
    shards: int


def plan_layout(sizes: Sequence[int], shard_tokens: int) -> Layout:
    """Lay tiles of these sizes (in patches) one after the other; no tile straddles two shards.

    Args:
        sizes: patches of each tile, in the order of the table of tiles.
        shard_tokens: slots wanted in one shard; rounded to whole chunks that hold the largest tile.
    """
    chunk = chunk_tokens(sizes)
    chunks = [-(-size // chunk) for size in sizes]
    capacity = min(max(shard_tokens // chunk, *chunks, 1), sum(chunks))
    starts, shard, used = [], 0, 0
    for need in chunks:
        if used + need > capacity:
            shard, used = shard + 1, 0
        starts.append((shard * capacity + used) * chunk)
        used += need
    return Layout(starts, chunk, capacity * chunk, shard + 1)


def cache_bytes(layout: Layout, channels: Mapping[str, int], narrow: int) -> int:
    """Bytes that one shard takes on the disk, all arrays together.

    Args:
        channels: of each array; ``rgb`` is always float16.
        narrow: bytes of a value of the others: 2, or 1 with a float32 scale for each chunk.
    """
    others = sum(width for name, width in channels.items() if name != "rgb")
    scales = 4 * (layout.shard // layout.chunk) if narrow == 1 else 0
    return layout.shard * (narrow * others + 2 * channels.get("rgb", 0)) + scales * others


def sample_plan(
    sizes: Sequence[int], wanted: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """Choose tokens of all tiles uniformly, without replacement, before any of them is read.

    Args:
        sizes: tokens of each tile.
        wanted: tokens to choose; all of them where there are no more.

    Returns:
        Per tile the positions in it, int64, ascending.
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    if wanted < total:
        # NumPy draws few of many with a hash set: memory follows `wanted`, not the total.
        drawn = np.sort(generator.choice(total, wanted, replace=False, shuffle=False))
    else:
        drawn = np.arange(total)
    parts = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
    return [part - (end - size) for part, end, size in zip(parts, ends, sizes, strict=False)]

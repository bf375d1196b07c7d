"""Planning of tiles and shards: pure arithmetic on sizes, apart from the code that moves data.

A tile is a window of a resized image. Whole images, sliding windows and (mirrored or scaled) views
are all tiles; what follows the extraction knows nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Tile(NamedTuple):
    """A window of one resized image; all lengths in pixels of the resized image.

    ``scale`` multiplies the short side that the image is resized to, ``flip`` mirrors the window
    from left to right after it was cut.
    """

    resized_h: int
    resized_w: int
    top: int
    left: int
    height: int
    width: int
    scale: float = 1.0
    flip: bool = False


def resized_shape(height: int, width: int, short_side: int, patch: int) -> tuple[int, int]:
    """Size of the resized image: the short side becomes ``short_side``, the aspect is kept.

    Both sides are rounded to the nearest whole number of patches, at least one. All in pixels.
    """
    factor = short_side / min(height, width)
    sides = (max(1, round(side * factor / patch)) * patch for side in (height, width))
    resized_h, resized_w = sides
    return resized_h, resized_w


def plan_tiles(
    height: int,
    width: int,
    *,
    patch: int,
    short_side: int,
    window: int | None,
    stride: int | None,
    max_patches: int,
    scale: float = 1.0,
    flip: bool = False,
) -> list[Tile]:
    """The tiles of one image of ``height`` x ``width`` pixels; together they cover all of it.

    Without a window the whole image is one tile, unless it has more than ``max_patches`` patches:
    then it is cut into square windows that overlap by a third.

    Raises:
        ValueError: a window or its short side is smaller than a patch.
    """
    side = round(short_side * scale)
    if side < patch:
        raise ValueError(f"the short side must be at least one patch ({patch} px), found {side} px")
    full_h, full_w = resized_shape(height, width, side, patch)
    if window is None or stride is None:
        if full_h // patch * (full_w // patch) <= max_patches:
            return [Tile(full_h, full_w, 0, 0, full_h, full_w, scale, flip)]
        window = min(side, int(max_patches**0.5) * patch)
        stride = max(patch, window * 2 // 3)
    if window < patch or stride < patch:
        raise ValueError(
            f"window and stride must be at least one patch ({patch} px), found {window} and "
            f"{stride} px"
        )
    window, stride = window // patch * patch, stride // patch * patch
    return [
        Tile(full_h, full_w, top, left, min(window, full_h), min(window, full_w), scale, flip)
        for top in _starts(full_h, window, stride)
        for left in _starts(full_w, window, stride)
    ]


def fitted_shape(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Size of an image whose short side became ``short_side``, the aspect kept; in pixels."""
    factor = short_side / min(height, width)
    return round(height * factor), round(width * factor)


def centre_box(height: int, width: int, crop: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the square of ``crop`` pixels in the centre, if it fits."""
    tall, wide = min(crop, height), min(crop, width)
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def plan_crop(height: int, width: int, short_side: int, crop: int) -> list[Tile]:
    """The square in the centre of the resized image; its side need not be whole patches."""
    resized = fitted_shape(height, width, short_side)
    return [Tile(*resized, *centre_box(*resized, crop))]


def plan_windows(height: int, width: int, short_side: int, window: int, stride: int) -> list[Tile]:
    """Sliding windows of the resized image, placed as mmsegmentation places them.

    ceil((side - window) / stride) + 1 windows along a side, the last one moved back to end with it;
    where the side is shorter than a window, one window of that side. In pixels, which need not be
    whole patches.
    """
    full_h, full_w = fitted_shape(height, width, short_side)
    return [
        Tile(full_h, full_w, top, left, min(window, full_h), min(window, full_w))
        for top in _starts(full_h, window, stride)
        for left in _starts(full_w, window, stride)
    ]


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one side; the last one ends flush with it."""
    last = max(0, length - window)
    return [*range(0, last, stride), last]


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
    """Where tiles lie in the cache: ``starts[i]`` is the first slot of tile i."""

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

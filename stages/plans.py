"""Which tiles the cache holds: a plan for training, and one for each protocol of evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cache.features import TILE_FIELDS
from cache.index import ImageRow
from pipeline.features.tiles import Tile, plan_crop, plan_tiles, plan_windows
from pipeline.features.views import plan_view, view_generator
from stages import way_out
from stages.params import Params
from stages.sections import ProtocolParams, TilesParams


def tile_table(rows: list[ImageRow], params: Params, patch: int, most: int) -> np.ndarray:
    """The table of tiles of all images (dtype `TILE_FIELDS`), ``start`` still 0.

    Its field ``view`` tells what a tile is for: -1, -2, ... the protocols, in their order; 0, 1,
    ... the views to train on. Where the first protocol's tiles are those of training, they are
    trained on too, and there is no view.

    Args:
        patch: px, side of a patch.
        most: patches of a tile; a larger whole image is cut into windows.
    """
    splits = list(dict.fromkeys(row.split for row in rows))
    placed = [
        (row.id, splits.index(row.split), view, tile)
        for row in rows
        for view, tiles in _plans(row, params, patch, most)
        for tile in tiles
    ]
    table = np.zeros(len(placed), TILE_FIELDS)
    for place, name in enumerate(("image", "split", "view")):
        table[name] = [entry[place] for entry in placed]
    for name in Tile._fields:
        table[name] = [getattr(tile, name) for *_, tile in placed]
    for grid, side in (("grid_h", "height"), ("grid_w", "width")):
        table[grid] = np.maximum(1, np.rint(table[side] / patch))
    return table


def _plans(
    row: ImageRow, params: Params, patch: int, most: int
) -> Iterator[tuple[int, list[Tile]]]:
    """The views of an image, and the tiles of each."""
    train, training = params.extract.train, row.split == params.train_split
    scored = row.split in params.segmented
    with way_out("change `extract.train` or `protocols`"):
        for number, protocol in enumerate(params.protocols_used.values()):
            shared = number == 0 and training and params.trains_as_scored
            if scored or shared:
                yield (
                    -1 - number,
                    protocol_tiles(row.height, row.width, protocol, train, patch, most),
                )
        if not training or params.trains_as_scored:
            return
        if not train.drawn:
            yield 0, _whole(row.height, row.width, train.short_side, train, patch, most)
        else:
            yield from enumerate(_views(row, train, patch, most))


def protocol_tiles(
    height: int,
    width: int,
    protocol: ProtocolParams,
    train: TilesParams,
    patch: int,
    most: int,
) -> list[Tile]:
    """The tiles of an image in a protocol: its centre, sliding windows, or all as in training."""
    side = protocol.short_side or train.short_side
    if protocol.crop:
        return plan_crop(height, width, side, protocol.crop)
    if protocol.window and protocol.stride:
        return plan_windows(height, width, side, protocol.window, protocol.stride)
    return _whole(height, width, side, train, patch, most)


def _whole(
    height: int, width: int, side: int, train: TilesParams, patch: int, most: int
) -> list[Tile]:
    return plan_tiles(
        height,
        width,
        patch=patch,
        short_side=side,
        window=train.window,
        stride=train.stride,
        max_patches=most,
    )


def _views(row: ImageRow, train: TilesParams, patch: int, most: int) -> list[list[Tile]]:
    """The tiles of every view of a training image."""
    return [
        plan_view(
            row.height,
            row.width,
            patch=patch,
            short_side=train.short_side,
            scale=(train.scale[0], train.scale[1]) if train.scale else None,
            crop=train.crop,
            flip=train.flip,
            max_patches=most,
            generator=view_generator(train.seed, row.sha256, number, False),
        )
        for number in range(train.views)
    ]

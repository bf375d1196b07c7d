"""Plans of the images of a data set: a geometry for each protocol, views to train on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from cache.features import TILE_FIELDS
from cache.index import ImageRow
from pipeline.features.views import view_generator
from pipeline.geometry import Geometry, Plan, plan, plan_resized_crop, plan_view
from stages import way_out
from stages.settings.params import Params
from stages.settings.sections import ProtocolParams, TilesParams


def whole_photos(train: TilesParams, patch: int, most: int) -> Geometry:
    """Return how training looks at whole photos."""
    return Geometry(patch, train.short_side, None, train.window, train.stride, most=most)


def geometry_of(protocol: ProtocolParams, whole: Geometry) -> Geometry:
    """Return how a protocol of evaluation looks at photos; ``whole`` is how training does."""
    side = protocol.short_side or whole.short_side
    if not (protocol.crop or protocol.window):
        return whole._replace(short_side=side)
    chosen = (protocol.crop, protocol.window, protocol.stride)
    return Geometry(whole.patch, side, *chosen, aligned=False)


def tile_table(
    rows: list[ImageRow], params: Params, whole: Geometry, protocols: Mapping[str, Geometry]
) -> np.ndarray:
    """Return the table of tiles of all images (dtype `TILE_FIELDS`), ``start`` still 0.

    Its field ``view`` says what a tile is for: -1, -2, ... are the protocols in their order, 0, 1,
    ... the views to train on. There are no views where the tiles of the first protocol are those
    of training.
    """
    splits = list(dict.fromkeys(row.split for row in rows))
    placed = [
        (row.id, splits.index(row.split), view, *tile, *grid, *found.resized, 0, found.flip)
        for row in rows
        for view, found in _plans(row, params, whole, protocols)
        for tile, grid in zip(found.tiles, found.grids(), strict=True)
    ]
    return np.array(placed, TILE_FIELDS)


def _plans(
    row: ImageRow, params: Params, whole: Geometry, protocols: Mapping[str, Geometry]
) -> Iterator[tuple[int, Plan]]:
    """The number and the plan of every view of an image."""
    train, training = params.extract.train, row.split == params.train_split
    scored = row.split in params.segmented
    with way_out("change `extract.train` or `protocols`"):
        for number, geometry in enumerate(protocols.values()):
            shared = number == 0 and training and params.trains_as_scored
            if scored or shared:
                yield -1 - number, plan(geometry, row.height, row.width)
        if not training or params.trains_as_scored:
            return
        if not train.drawn:
            yield 0, plan(whole, row.height, row.width)
            return
        for number in range(train.views):
            yield number, _view(row, train, whole, number)


def _view(row: ImageRow, train: TilesParams, whole: Geometry, number: int) -> Plan:
    size, generator = (row.height, row.width), view_generator(train.seed, row.sha256, number, False)
    if train.area and train.crop:
        area, crop = (train.area[0], train.area[1]), train.crop
        return plan_resized_crop(
            whole, *size, area=area, crop=crop, flip=train.flip, generator=generator
        )
    scale = (train.scale[0], train.scale[1]) if train.scale else None
    return plan_view(
        whole, *size, scale=scale, crop=train.crop, flip=train.flip, generator=generator
    )

"""Photos as label maps cover them: whole, or the part that a protocol looks at."""

from __future__ import annotations

import numpy as np

from cache.images import read_row
from cache.index import ImageRow
from cache.segments import Segments
from pipeline.geometry import Geometry, Plan, plan


def plan_of(maps: Segments, row: ImageRow, variant: str | None = None) -> Plan:
    """Return the plan by which a variant (None: the main one) of the label maps was made."""
    return plan(Geometry(**maps.geometry(variant)), row.height, row.width)


def read_planned(maps: Segments, row: ImageRow) -> np.ndarray:
    """Return the pixels that the main label map of an image covers; errors as `read_row`."""
    return plan_of(maps, row).cut(read_row(row))

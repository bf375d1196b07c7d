"""What is held in memory does not grow with the number of images."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from cache.segments import FORMAT, PREDICTORS, ImageMaps, Segments, write_maps
from cache.store import parts

COUNT = 200


def test_what_hdf5_keeps_of_headers_is_bounded(tmp_path: Path) -> None:
    ids, small = np.arange(24).reshape(4, 6), np.ones((2, 2))
    labels = {"full": dict.fromkeys(PREDICTORS, ids)}
    maps = (ImageMaps(i, labels, small[None], small, small) for i in range(COUNT))
    clusters = dict.fromkeys(PREDICTORS, 24)
    write_maps(tmp_path, "all", maps, clusters)
    facts = {"format": FORMAT, "clusters": clusters, "variants": ["full"]}
    path = tmp_path / "segments.h5"
    parts.assemble(tmp_path, ["all"], path, facts)
    with Segments(path) as store:
        for image in range(COUNT):
            np.testing.assert_array_equal(store.read("ours", image), ids)
        *_, held, _ = store.node("full").file.id.get_mdc_size()
    with h5py.File(path) as file:
        file.visititems(lambda *_: None)
        *_, unbounded, _ = file.id.get_mdc_size()
    assert 0 < held <= parts.HEADER_BYTES < unbounded

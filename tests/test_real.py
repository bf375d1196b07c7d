"""Real photos and a real backbone, where they are at hand: the features must know classes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from cache.features import Features
from cache.graphs import Graphs
from tests.conftest import Project


def test_neighbours_in_a_real_graph_share_their_class(
    project: Project, reference_data: Callable[[str], Path]
) -> None:
    camvid = reference_data("data/camvid")
    weights = reference_data("weights/vit_small_patch14_dinov2.safetensors")
    for kind, suffix in (("images", "jpg"), ("labels", "png")):
        for split in ("train", "test"):
            folder = Path("camvid") / kind / split
            folder.mkdir(parents=True)
            for path in sorted((camvid / kind / split).glob(f"*.{suffix}"))[:120:40]:
                shutil.copy(path, folder)
    shutil.copy(camvid / "classes.txt", "camvid/classes.txt")
    project.set("datasets.tiny", {"root": "camvid", "train": "train", "eval": "test"})
    model = {
        "model": "vit_small_patch14_dinov2.lvd142m",
        "weights": str(weights),
        "context": {"late": 1.0},
    }
    project.set("backbones.tiny", model)
    project.set("extract.train.short_side", 252)
    project.shards(2000)
    project.set("graph.k", 10)
    project.ok("prepare", "extract", "context", "graph", "train", "segment", "eval")
    features = Features.open("data/features.zarr")
    assert features.manifest["patch"] == 14
    with Graphs("data/graph.h5") as graphs:
        group = graphs.group(0, 0)
    labels = []
    for tile in group.tiles:
        row = features.tiles[tile]
        names = sorted(path.stem for path in Path("camvid/labels/train").iterdir())
        train = features.tiles_of("train").tolist()
        path = Path("camvid/labels/train") / f"{names[train.index(tile)]}.png"
        size = (int(row["grid_w"]), int(row["grid_h"]))
        labels.append(np.asarray(Image.open(path).resize(size, Image.Resampling.NEAREST)).ravel())
    label = np.concatenate(labels)
    known = label != 255
    agree = (label[group.neighbours.indices] == label[:, None])[known].mean()
    shares = np.bincount(label[known]) / known.sum()
    chance = float((shares**2).sum())
    assert agree > 0.75 > 1.5 * chance

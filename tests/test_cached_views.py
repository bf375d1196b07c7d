"""Views in the cache: made again by hand, one of each image an epoch, none in evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cache.features import Features
from cache.graphs import Graphs
from cache.index import read_index
from pipeline.features.views import distort, view_generator
from pipeline.features.vit import downsample
from stages.running import batches
from stages.settings import params
from tests.conftest import Project

VIEWS = {"views": 3, "scale": [0.5, 1.5], "crop": 64, "flip": True, "colour": 1.0, "seed": 0}
CACHE = Path("data/features.zarr")


def draw(project: Project, views: dict[str, Any]) -> None:
    for key, value in views.items():
        project.set(f"extract.train.{key}", value)


@pytest.fixture
def viewed(project: Project) -> Project:
    draw(project, VIEWS)
    project.set("graph.scope", "batch")
    project.set("graph.group_patches", 48)
    project.ok("prepare")
    return project


def test_a_view_is_made_again_by_hand(viewed: Project) -> None:
    viewed.ok("extract")
    cache, rows = Features.open(CACHE), read_index("data/index.csv")
    tiles = cache.training_tiles("train")
    assert len(tiles) == 3 * 6 and len(cache.tiles_of("train")) == 6 and cache.views == range(3)
    assert len(cache.tiles_of("val")) == 3 and not len(cache.training_tiles("val"))
    assert len(np.unique(cache.tiles[["resized_h", "resized_w"]][tiles])) > 6
    for tile in tiles:
        entry, patch = cache.tiles[tile], cache.manifest["patch"]
        row = rows[entry["image"]]
        size = int(entry["resized_w"]), int(entry["resized_h"])
        photo = Image.open(row.path).resize(size, Image.Resampling.BICUBIC)
        corner = int(entry["left"]), int(entry["top"])
        box = (*corner, corner[0] + int(entry["width"]), corner[1] + int(entry["height"]))
        cut = photo.crop(box)
        if entry["flip"]:
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = np.asarray(cut, np.float32).transpose(2, 0, 1) / 255
        draws = view_generator(0, row.sha256, int(entry["view"]), True)
        coloured = torch.from_numpy(distort(pixels, 1.0, draws))[None]
        expected = downsample(coloured, patch)[0].numpy()
        np.testing.assert_allclose(cache.rgb(tile), expected, atol=1e-3)


def test_what_is_evaluated_is_not_changed_by_views(project: Project) -> None:
    project.ok("prepare", "extract")
    plain = Features.open(CACHE)
    former = {split: plain.batch(["last"], plain.tiles_of(split)) for split in ("train", "val")}
    assert np.array_equal(plain.training_tiles("train"), plain.tiles_of("train"))
    draw(project, {**VIEWS, "views": 1})
    project.ok("extract")
    cache = Features.open(CACHE)
    for split, tokens in former.items():
        np.testing.assert_allclose(
            cache.batch(["last"], cache.tiles_of(split)), tokens, atol=2e-3, rtol=2e-3
        )


def test_an_epoch_takes_one_view_of_each_image(viewed: Project) -> None:
    viewed.ok("extract", "context", "graph")
    choices, cache = params.load(), Features.open(CACHE)
    with Graphs("data/graph.h5") as graphs:
        given = (cache, graphs, choices.head.levels, choices.graph.alpha, choices.seed, False)
        for epoch in range(5):
            tiles = np.concatenate(batches.DrawnTiles(*given).plan(epoch))
            assert set(cache.tiles["view"][tiles]) == {epoch % 3}
            assert sorted(cache.tiles["image"][tiles]) == sorted(set(cache.tiles["image"][tiles]))
            assert len(tiles) == 6


@pytest.mark.parametrize("scope", ["group", "dataset"])
def test_a_round_of_stored_groups_takes_one_view(viewed: Project, scope: str) -> None:
    viewed.set("graph.scope", scope)
    viewed.set("graph.k", 4)
    viewed.set("train.epochs", 2)
    viewed.fails("graph", "extract.train.views (3) must not exceed train.epochs (2)")
    viewed.set("train.epochs", 4)
    viewed.ok("extract", "context", "graph", "train")
    cache = Features.open(CACHE)
    with Graphs("data/graph.h5") as graphs:
        for round_ in range(3):
            tiles = np.concatenate([graphs.group(round_, g).tiles for g in range(2)])
            assert set(cache.tiles["view"][tiles]) == {round_} and len(tiles) == 6


def test_views_train_a_head_that_is_scored_on_whole_images(viewed: Project) -> None:
    viewed.ok("extract", "context", "graph", "train", "segment", "eval", "report")


@pytest.mark.parametrize(
    ("views", "text"),
    [
        ({**VIEWS, "scale": None, "crop": None, "flip": False, "colour": 0.0}, "must be 1 where"),
        ({**VIEWS, "scale": [2.0, 0.5]}, "scale must be"),
    ],
)
def test_views_that_cannot_be(project: Project, views: dict, text: str) -> None:
    draw(project, views)
    project.fails("extract", text)
    draw(project, VIEWS)
    project.set("extract.train.window", 64)
    project.set("extract.train.stride", 32)
    project.fails("extract", "views are cut out by crop")

"""Protocols of evaluation: what they look at, several in one run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from cache.features import Features
from cache.segments import PREDICTORS, Segments
from stages.settings.params import load
from tests.conftest import Project

PROTOCOLS = {
    "whole": {"short_side": None, "crop": None, "window": None, "stride": None},
    "crop": {"short_side": 90, "crop": 90, "window": None, "stride": None},
    "sliding": {"short_side": 100, "crop": None, "window": 60, "stride": 40},
}


def test_several_protocols_in_one_run(project: Project) -> None:
    project.set("protocols", PROTOCOLS)
    project.set("extract.eval", list(PROTOCOLS))
    project.ok("prepare", "extract", "context", "graph", "train", "segment", "eval", "report")
    metrics = json.loads(Path("results/metrics.json").read_text())
    (metrics,) = metrics.values()
    assert list(metrics) == list(PROTOCOLS)
    assert all(set(scored) == set(PREDICTORS) for scored in metrics.values())
    assert (
        len({scored["ours"]["majority_iou"]["oracle"]["miou"] for scored in metrics.values()}) > 1
    )
    with open("results/per_class.csv", newline="") as file:
        assert {row["variant"] for row in csv.DictReader(file)} == set(PROTOCOLS)
    with Segments("data/segments.h5") as maps:
        image = maps.images[0]
        photo = maps.read("ours", image, "whole").shape
        assert maps.read("ours", image, "sliding").shape == photo
        assert maps.read("ours", image, "crop").shape == (90, 90)
    page = Path("results/report/index.html").read_text()
    assert all(f"tiny, protocol {name}<" in page for name in PROTOCOLS)
    sliding = [t for t in Features.open("data/features.zarr").tiles if t["view"] == -3]
    assert {int(tile["grid_h"]) for tile in sliding} == {round(60 / 16)}


def test_the_crop_alone_makes_pictures_of_the_crop(project: Project) -> None:
    project.set("protocols", {"crop": PROTOCOLS["crop"]})
    project.set("extract.eval", ["crop"])
    project.ok("prepare", "extract", "context", "graph", "train", "segment", "eval", "report")
    cache = Features.open("data/features.zarr")
    assert set(cache.tiles["view"].tolist()) == {-1, 0}
    trained = cache.tiles[cache.training_tiles("train")]
    assert set(trained["view"].tolist()) == {0}
    with Image.open("results/report/gallery_00_image.png") as picture:
        assert picture.width == picture.height


def test_without_a_mapping_of_the_training_split_it_gets_no_maps(project: Project) -> None:
    project.set("eval.mapping", ["oracle"])
    project.ok("prepare", "extract", "context", "graph", "train", "segment", "eval", "report")
    index = Path("data/index.csv").read_text().splitlines()
    evaluated = sum(",val," in line for line in index)
    with Segments("data/segments.h5") as maps:
        assert len(maps.images) == evaluated
    scored = json.loads(Path("results/metrics.json").read_text())["tiny"]["full"]["ours"]
    assert set(scored["majority_iou"]) == {"oracle"}


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("extract.eval", ["full", "nothing"], "must name entries of `protocols`"),
        ("extract.eval", ["full", "full"], "each once"),
        ("protocols.full.crop", 90, "needs a short_side"),
        ("protocols.sliding.stride", 999, "stride (999) must not exceed window (480)"),
        ("protocols.sliding.crop", 9, "a crop or windows, not both"),
    ],
)
def test_protocols_that_cannot_be(project: Project, key: str, value: object, text: str) -> None:
    project.set(key, value)
    project.fails("prepare", text)


def test_the_default_trains_on_what_it_scores(project: Project) -> None:
    params = load("params.yaml")
    assert params.trains_as_scored and params.segmented == ("train", "val")

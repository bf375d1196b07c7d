"""Protocols of evaluation: what they look at, how windows are averaged, several in one run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from cache.features import Features
from cache.segments import PREDICTORS, Segments
from pipeline.features.tiles import centre_box, fitted_shape, plan_crop, plan_windows
from pipeline.maps import sliding
from pipeline.maps.sliding import Placed, average, sliding_argmax
from stages.looking import seen_label
from stages.params import load
from tests.conftest import Project

RESIZED = (37, 53)


def placed(clusters: int = 7) -> list[Placed]:
    generator = torch.Generator().manual_seed(0)
    tiles = plan_windows(*RESIZED, short_side=37, window=22, stride=15)
    return [
        Placed(torch.randn(clusters, 5, 6, generator=generator), t.top, t.left, t.height, t.width)
        for t in tiles
    ]


def dense(windows: list[Placed]) -> torch.Tensor:
    """The averaged maps, pixel by pixel in float64."""
    sums = torch.zeros(len(windows[0].scores), *RESIZED, dtype=torch.float64)
    counts = torch.zeros(*RESIZED, dtype=torch.float64)
    for scores, top, left, height, width in windows:
        large = interpolate(scores[None].double(), (height, width), mode="bilinear")[0]
        for y in range(height):
            for x in range(width):
                sums[:, top + y, left + x] += large[:, y, x]
                counts[top + y, left + x] += 1
    return sums / counts


def test_windows_lie_where_sliding_inference_puts_them() -> None:
    tiles = plan_windows(1024, 2048, short_side=1024, window=768, stride=512)
    assert [t.top for t in tiles if t.left == 0] == [0, 256]
    assert [t.left for t in tiles if t.top == 0] == [0, 512, 1024, 1280]
    assert {(t.height, t.width) for t in tiles} == {(768, 768)}
    few = plan_windows(375, 500, short_side=520, window=480, stride=320)
    assert [(t.top, t.left) for t in few] == [(0, 0), (0, 213), (40, 0), (40, 213)]
    (one,) = plan_windows(100, 100, short_side=300, window=480, stride=320)
    assert (one.height, one.width) == (300, 300)


@pytest.mark.parametrize("side", [480, 481, 799, 800, 801, 1000, 1121])
def test_windows_are_as_many_as_the_formula_says(side: int) -> None:
    window, stride = 480, 320
    tiles = plan_windows(480, side, short_side=480, window=window, stride=stride)
    count = max(side - window + stride - 1, 0) // stride + 1
    expected = [min(i * stride, side - window) for i in range(count)]
    assert [tile.left for tile in tiles] == expected


def test_windows_are_averaged_in_pixels() -> None:
    windows = placed()
    found = average(windows, RESIZED)
    torch.testing.assert_close(found.double(), dense(windows), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [RESIZED, (61, 90), (20, 31)])
@pytest.mark.parametrize("budget", [1, 64 << 20])
def test_the_label_map_is_the_argmax_of_the_averages(size: tuple[int, int], budget: int) -> None:
    windows = placed()
    expected = interpolate(dense(windows)[None], size, mode="bilinear")[0].argmax(0).numpy()
    found = sliding_argmax(windows, RESIZED, *size, budget=budget)
    assert found.dtype == np.uint16 and len(np.unique(found)) > 1
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("side", [1, 5, 16, 64])
@pytest.mark.parametrize("size", [RESIZED, (20, 31), (75, 100)])
def test_clusters_that_cannot_win_in_a_block_change_nothing(
    size: tuple[int, int], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Smooth scores, where few can win: what windows say of a place is alike, but not equal."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(60, 8, generator=generator)
    field = interpolate(torch.randn(1, 8, 3, 4, generator=generator), RESIZED, mode="bicubic")[0]
    windows = []
    for scores, *place in placed():
        top, left, height, width = place
        part = field[None, :, top : top + height, left : left + width]
        tokens = interpolate(part, scores.shape[1:], mode="bilinear")[0]
        tokens += 0.1 * torch.randn(8, 1, 1, generator=generator)
        windows.append(Placed(torch.einsum("kc,chw->khw", centres, tokens), *place))
    left_over = []
    able = sliding._able
    monkeypatch.setattr(sliding, "SIDE", side)
    monkeypatch.setattr(
        sliding, "_able", lambda *given: left_over.append(able(*given)) or left_over[-1]
    )
    expected = interpolate(dense(windows)[None], size, mode="bilinear")[0].argmax(0).numpy()
    assert np.array_equal(sliding_argmax(windows, RESIZED, *size), expected)
    assert side > 5 or np.mean([len(ids) for ids in left_over]) < 30


def test_the_lowest_of_equal_clusters_wins() -> None:
    windows = [w._replace(scores=w.scores[[3, 3, 1, 1, 3, 5, 5, 1]]) for w in placed()]
    found = sliding_argmax(windows, RESIZED, 75, 100)
    assert set(np.unique(found)) == {0, 2, 5}


def test_windows_must_cover_the_image() -> None:
    with pytest.raises(ValueError, match=r"must cover it, found \d+ of 1961 pixels"):
        average(placed()[:-1], RESIZED)
    with pytest.raises(ValueError, match=r"must cover it, found \d+ of 1961 pixels"):
        sliding_argmax(placed()[:-1], RESIZED, 20, 31)


def test_the_crop_of_a_label_is_that_of_the_image() -> None:
    assert fitted_shape(375, 500, 320) == (320, 427)
    assert centre_box(320, 427, 320) == (0, 53, 320, 320)
    (tile,) = plan_crop(375, 500, 320, 320)
    assert (tile.resized_h, tile.resized_w) == (320, 427)
    assert (tile.top, tile.left, tile.height, tile.width) == (0, 53, 320, 320)
    label = np.arange(640 * 960, dtype=np.int64).reshape(640, 960)
    seen = seen_label(label, 320, 320)  # half the size: the centre of each pixel lies at 2 i + 1
    assert np.array_equal(seen, label[1::2, 1::2][:, 80:400])
    assert seen_label(label, None, None) is label


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

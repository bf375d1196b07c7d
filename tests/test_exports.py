"""Files for other tools, opened by their own readers and by decoders of their descriptions."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from cache.exports import SMALLEST, Coco, LabelStudio, brush_runs
from cache.store.errors import InputError
from pipeline.drawing.colours import class_colours
from stages.showing.label_maps import covers_nearly_all, warn_of_merging
from tests.conftest import Project
from tests.test_atlas import finished, named  # noqa: F401

CLASSES = ["sky", '<b>"road" & rail', "box"]


def label_map(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    """Blocks of classes and of none, with specks."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice([0, 1, 2, 255], (height // 8, width // 8)).astype(np.uint8)
    labels = np.kron(blocks, np.ones((8, 8), np.uint8))
    labels[rng.random(labels.shape) < 0.02] = 1
    return labels


def decoded(code: list[int]) -> np.ndarray:
    """Label Studio's brush, bit by bit as its format is described."""
    bits = "".join(f"{byte:08b}" for byte in code)
    place = 0

    def read(n: int) -> int:
        nonlocal place
        place += n
        return int(bits[place - n : place], 2)

    count, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        repeated = read(1)
        n = read(sizes[read(2)]) + 1
        values += [read(word)] * n if repeated else [read(word) for _ in range(n)]
    return np.array(values)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (40, 56), (300, 400)])
def test_brush_runs_give_the_mask_back(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    masks = [np.zeros(shape, bool), np.ones(shape, bool), rng.random(shape) < 0.5]
    masks.append(np.arange(shape[0] * shape[1]).reshape(shape) % 97 < 60)
    for mask in masks:
        values = decoded(brush_runs(mask)).reshape(*shape, 4)
        np.testing.assert_array_equal(values, np.repeat(mask[..., None] * 255, 4, axis=2))


def test_label_studio_reads_its_file(tmp_path: Path) -> None:
    brush = pytest.importorskip("label_studio_converter.brush", reason="no label-studio-converter")
    maps = {"val/a b": label_map(0), "val/c": label_map(1)}
    for name, labels in maps.items():  # the second one joins the first
        writer = LabelStudio(tmp_path, CLASSES, class_colours(3))
        writer.add(name, ".jpg", labels)
        writer.close()
    tasks = json.loads((tmp_path / "label_studio.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [
        "/data/local-files/?d=val/a%20b.jpg",
        "/data/local-files/?d=val/c.jpg",
    ]
    for task, labels in zip(tasks, maps.values(), strict=True):
        (prediction,) = task["predictions"]
        results = [{**one, **one["value"]} for one in prediction["result"]]  # as its exports are
        layers = brush.decode_from_annotation("class", results)
        found = np.full(labels.shape, 255)
        for name, layer in layers.items():
            value = next(i for i, own in enumerate(CLASSES) if name.startswith(f"class-{own}"))
            found[layer > 0] = value
        np.testing.assert_array_equal(found, labels)
    config = ElementTree.parse(tmp_path / "label_studio.xml").getroot()
    assert [one.get("value") for one in config.iter("Label")] == CLASSES
    assert {one["from_name"] for one in results} == {config.find("BrushLabels").get("name")}


def test_coco_reads_its_files(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    maps = {
        "val/a": label_map(0),
        "val/b": label_map(1),
        "val/none": np.full((8, 8), 255, np.uint8),
    }
    for name, labels in reversed(maps.items()):  # each joins those before
        writer = Coco(tmp_path, CLASSES, class_colours(3))
        writer.add(name, ".png", labels)
        writer.close()
    found = coco.COCO(tmp_path / "coco/instances.json")
    assert [found.cats[i]["name"] for i in sorted(found.cats)] == CLASSES
    images = {image["file_name"]: i for i, image in found.imgs.items()}
    assert sorted(images) == [f"{name}.png" for name in sorted(maps)]
    for name, labels in maps.items():
        own = found.loadAnns(found.getAnnIds(imgIds=images[f"{name}.png"]))
        drawn = np.full(labels.shape, 255)
        for one in own:
            mask = found.annToMask(one) > 0
            assert ndimage.label(mask)[1] == 1 and mask.sum() == one["area"]
            rows, columns = np.nonzero(mask)
            left, top, width, height = one["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (width, height) == (np.ptp(columns) + 1, np.ptp(rows) + 1)
            drawn[mask] = one["category_id"] - 1
        np.testing.assert_array_equal(drawn, labels)  # the photos are small: no part is left out
    panoptic = json.loads((tmp_path / "coco/panoptic.json").read_text())
    for one in panoptic["annotations"]:
        rgb = np.asarray(Image.open(tmp_path / "coco/panoptic" / one["file_name"])).astype(int)
        ids = rgb @ [1, 256, 65536]  # the format's own formula
        labels = maps[one["file_name"].removesuffix(".png")]
        np.testing.assert_array_equal(ids, np.where(labels == 255, 0, labels.astype(int) + 1))
        assert {s["id"]: s["area"] for s in one["segments_info"]} == {
            int(i): int((ids == i).sum()) for i in np.unique(ids[ids > 0])
        }


def test_specks_are_no_instances(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    labels = np.zeros((200, 200), np.uint8)
    labels[0, 0], labels[50:60, 50:60] = 1, 2
    writer = Coco(tmp_path, CLASSES, class_colours(3))
    writer.add("a", ".jpg", labels)
    writer.close()
    found = json.loads((tmp_path / "coco/instances.json").read_text())["annotations"]
    assert [one["category_id"] for one in found] == [1, 3] and SMALLEST * labels.size > 1


def test_without_pycocotools_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(InputError, match=r"\[export\]"):
        Coco(tmp_path, CLASSES, class_colours(3))


def test_merging_into_one_segment_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    ids = np.zeros((10, 10), np.uint16)
    ids[0, :4] = 1
    assert covers_nearly_all(ids)
    ids[0, :6] = 1
    assert not covers_nearly_all(ids)
    warn_of_merging(["a", "b", "c", "d"], 9, 8)
    text = capsys.readouterr().err
    assert "in 4 of 9 photos (a, b, c, ...)" in text and "Try --merge-to 16" in text


def test_areas_open_as_csv(tmp_path: Path) -> None:
    from cache.predictions import read_areas, write_areas

    write_areas(tmp_path, CLASSES, {"b": np.array([1, 2, 3, 4])})
    write_areas(tmp_path, CLASSES, {"a": np.array([5, 0, 0, 1])})
    with open(tmp_path / "areas.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["photo"] for row in rows] == ["a", "b"] and rows[1][CLASSES[1]] == "2"
    assert read_areas(tmp_path) == {
        "sky": [5, 1], CLASSES[1]: [0, 2], "box": [0, 3], "no class": [1, 4],
    }  # fmt: skip


def test_predict_and_name_write_them(named: Project) -> None:  # noqa: F811
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    formats = ("--format", "coco", "--format", "label_studio")
    given = ("photos/images", "--names", "names.json")
    result = named.run("predict", *given, "--out", "out", *formats)
    assert result.exit_code == 0, result.output
    named.set("segment.names", "names.json")
    result = named.run("name", "--out", "named", *formats)
    assert result.exit_code == 0, result.output
    for name in ("coco/instances.json", "coco/panoptic.json", "label_studio.json"):
        assert Path("out", name).read_bytes() == Path("named", name).read_bytes()
    assert len(list(Path("out/coco/panoptic").rglob("*.png"))) == 9
    again = named.run("predict", *given, "--out", "out", *formats)  # its own files are no photos
    assert again.exit_code == 0 and "9 of 9 images" in again.output
    result = named.run("predict", "photos/images", "--out", "ids", "--mapping", "none", *formats)
    assert result.exit_code == 1 and "--format coco needs classes" in result.output
    result = named.run("predict", "photos/images", "--out", "two", "--mapping", "none",
                       "--merge-to", "2")  # fmt: skip
    assert result.exit_code == 0
    sizes = [np.bincount(np.asarray(Image.open(path)).ravel()).max() / (96 * 128)
             for path in Path("two/labels").rglob("*.png")]  # fmt: skip
    warned = "one segment covers more than 95%" in result.output
    assert warned == any(size > 0.95 for size in sizes)

"""Benchmarks in their own layouts: what is found, what values mean, and the whole pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache.labels import classes_of, find_labels, read_label
from cache.layouts import IGNORE, LAYOUTS, find_layout, value_table
from cache.photos import check_images, find_images
from cache.store.errors import InputError
from tests.conftest import REPOSITORY, Project

LABEL = np.zeros((24, 32), np.uint8)
FORMATS = REPOSITORY.parent / "shared/formats"


def save(root: Path, name: str, values: np.ndarray | None = None) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if values is None:
        values = np.random.default_rng(len(name)).integers(0, 255, (24, 32, 3)).astype(np.uint8)
    Image.fromarray(values).save(path)
    return path


def found(root: Path, name: str, classes: int, split: str) -> tuple[list[str], np.ndarray]:
    """Stems of the images of a split, and the first label as it is read."""
    layout = find_layout(name, classes)
    rows, _ = check_images(root, (split,), layout=layout)
    names = classes_of(root, layout, classes)
    assert len(names) == classes
    labels, _ = find_labels(root, rows, names, layout=layout)
    assert len(labels) == len(rows)
    return [row.stem for row in rows], read_label(*labels[0][1:])


def test_cityscapes(tmp_path: Path) -> None:
    label = LABEL.copy()
    label[0, :6] = [7, 8, 33, 6, 255, 9]
    save(tmp_path, "leftImg8bit/val/ulm/ulm_0_leftImg8bit.png")
    save(tmp_path, "leftImg8bit/test/bonn/b_leftImg8bit.png")
    save(tmp_path, "leftImg8bit/val/ulm/readme.png")
    save(tmp_path, "gtFine/val/ulm/ulm_0_gtFine_labelIds.png", label)
    save(tmp_path, "gtFine/val/ulm/ulm_0_gtFine_color.png", label)
    stems, fine = found(tmp_path, "cityscapes", 27, "val")
    assert stems == ["ulm/ulm_0"]
    assert fine[0, :6].tolist() == [0, 1, 26, IGNORE, IGNORE, 2]
    assert found(tmp_path, "cityscapes", 19, "val")[1][0, :6].tolist() == [0, 1, 18, 255, 255, 255]
    test, _ = check_images(tmp_path, ("test",), layout=LAYOUTS["cityscapes"])
    assert find_labels(tmp_path, test, ["road"], layout=LAYOUTS["cityscapes"]) == ([], [])


def test_cityscapes_with_train_ids_alone(tmp_path: Path) -> None:
    save(tmp_path, "leftImg8bit/val/ulm/a_leftImg8bit.png")
    save(tmp_path, "gtFine/val/ulm/a_gtFine_labelTrainIds.png", LABEL + np.uint8(18))
    assert found(tmp_path, "cityscapes", 19, "val")[1][0, 0] == 18
    with pytest.raises(InputError, match=r"must have a label .*_gtFine_labelIds\.png, 1 lack"):
        found(tmp_path, "cityscapes", 27, "val")


@pytest.mark.parametrize(
    ("name", "image", "label", "split", "classes", "meanings"),
    [
        ("ade20k", "images/{}/a.jpg", "annotations/{}/a.png", "training", 150,
         {0: 255, 1: 0, 150: 149}),
        ("coco_stuff", "{}/a.jpg", "annotations/{}/a.png", "val2017", 27, {0: 9, 255: 255, 12: 8}),
        ("coco_stuff", "{}/a.jpg", "annotations/{}/a.png", "val2017", 171,
         {0: 0, 10: 10, 11: 255, 12: 11, 181: 170}),
    ],
)  # fmt: skip
def test_flat_layouts(
    tmp_path: Path, name: str, image: str, label: str, split: str, classes: int,
    meanings: dict[int, int],
) -> None:  # fmt: skip
    values = LABEL.copy()
    values[:] = next(iter(meanings))
    values[0, : len(meanings)] = list(meanings)
    save(tmp_path, image.format(split))
    save(tmp_path, label.format(split), values)
    stems, read = found(tmp_path, name, classes, split)
    assert stems == ["a"]
    assert read[0, : len(meanings)].tolist() == list(meanings.values())


def test_pascal_context_reads_the_lists(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        save(tmp_path, f"JPEGImages/{name}.jpg")
        save(tmp_path, f"SegmentationClassContext/{name}.png", LABEL + np.uint8(59))
    lists = tmp_path / "ImageSets/SegmentationContext"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("c\na\n")
    stems, read = found(tmp_path, "pascal_context", 59, "val")
    assert stems == ["a", "c"] and (read == 58).all()
    assert (found(tmp_path, "pascal_context", 60, "val")[1] == 59).all()
    (lists / "val.txt").write_text("c\nz\n")
    with pytest.raises(InputError, match=r"val\.txt lists 1 images that are missing: .*z\.jpg"):
        found(tmp_path, "pascal_context", 59, "val")
    with pytest.raises(InputError, match=r"train\.txt must list the images of split train"):
        found(tmp_path, "pascal_context", 59, "train")


def test_values_outside_the_table_name_the_file(tmp_path: Path) -> None:
    save(tmp_path, "images/training/a.jpg")
    path = save(tmp_path, "annotations/training/a.png", LABEL + np.uint8(151))
    with pytest.raises(InputError, match=rf"{path}: label values .* ade20k with 150 .* found 151"):
        found(tmp_path, "ade20k", 150, "training")
    with pytest.raises(InputError, match=r"classes of format ade20k must be 150, found 19"):
        find_layout("ade20k", 19)
    with pytest.raises(InputError, match=r"must be null \(classes\.txt names them\), found 3"):
        find_layout("folder", 3)


@pytest.mark.parametrize(
    ("table", "classes"),
    [("cityscapes", 27), ("cityscapes", 19), ("cityscapes_train_ids", 19), ("ade20k", 150),
     ("coco_stuff", 27), ("coco_stuff", 171), ("pascal_context", 59), ("pascal_context", 60)],
)  # fmt: skip
def test_tables_have_every_class_once(table: str, classes: int) -> None:
    meant = value_table(table, classes)
    assert sorted(set(meant.classes.tolist()) - {IGNORE}) == list(range(classes))
    assert len(set(meant.names)) == classes
    if (table, classes) != ("coco_stuff", 27):  # there many values make one class
        assert (meant.classes != IGNORE).sum() == classes


def test_a_subset_is_a_matter_of_names(tmp_path: Path) -> None:
    for number in range(30):
        save(tmp_path, f"train/n{number % 3}/{number}.JPEG")
    layout = LAYOUTS["images"]
    some = {file.path for file in find_images(tmp_path, ("train",), layout, {"train": 10})[0]}
    assert len(some) == 10
    save(tmp_path, "train/n0/new.JPEG")
    again = {file.path for file in find_images(tmp_path, ("train",), layout, {"train": 10})[0]}
    assert len(some & again) >= 9
    assert len(find_images(tmp_path, ("train",), layout, {"train": 99})[0]) == 31


SAMPLES = {
    "cityscapes_27": ("cityscapes", "train", "val"),
    "cityscapes_19": ("cityscapes", "train", "val"),
    "ade20k": ("ADEChallengeData2016", "training", "validation"),
    "coco_stuff_27": ("coco_stuff", "train2017", "val2017"),
    "coco_stuff_171": ("coco_stuff", "train2017", "val2017"),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_whole_pipeline_on_real_files(project: Project, name: str) -> None:
    root, train, evaluated = SAMPLES[name]
    if not (FORMATS / root).is_dir():
        pytest.skip("the samples of the benchmarks are not beside the project")
    if name.startswith("coco") and not (FORMATS / root / evaluated).is_dir():
        evaluated = train  # the sample has labels of val2017, but no image
    project.set("dataset", name)
    entry = {**project.tree["datasets"][name], "root": str(FORMATS / root)}
    project.set(f"datasets.{name}", {**entry, "train": train, "eval": evaluated})
    project.ok("prepare", "extract", "context", "graph", "train", "segment", "eval")
    metrics = json.loads(Path("results/metrics.json").read_text())
    scores = json.dumps(metrics)
    assert '"oracle"' in scores and "miou" in scores
    counts = json.loads(Path("results/counts.json").read_text())["datasets"][name]
    assert str(len(counts["classes"])) in name or name == "ade20k"

"""Images: every mode decodes, every bad file is named before anything else runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache.images import read_image
from cache.index import read_index
from cache.store.errors import InputError
from cache.store.tables import write_table
from tests.conftest import Project

GREY = np.linspace(0, 255, 64 * 48).reshape(48, 64)


def test_the_index_lists_every_image_once_in_order(project: Project) -> None:
    project.ok("prepare")
    rows = read_index("data/index.csv")
    assert [(row.split, row.stem) for row in rows] == [
        (split, f"{n:03d}") for split, count in (("train", 6), ("val", 3)) for n in range(count)
    ]
    assert {(row.height, row.width) for row in rows} == {(96, 128)}
    assert len({row.sha256 for row in rows}) == 9


def test_preparing_twice_gives_the_same_bytes(project: Project) -> None:
    project.ok("prepare")
    first = Path("data/index.csv").read_bytes(), Path("data/labels.csv").read_bytes()
    project.ok("prepare")
    assert (Path("data/index.csv").read_bytes(), Path("data/labels.csv").read_bytes()) == first


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("grey.png", Image.fromarray(GREY.astype(np.uint8))),
        ("16bit.png", Image.fromarray((GREY * 257).astype(np.uint16))),
        ("rgba.png", Image.fromarray(GREY.astype(np.uint8)).convert("RGBA")),
        ("cmyk.jpg", Image.fromarray(GREY.astype(np.uint8)).convert("RGB").convert("CMYK")),
        ("palette.png", Image.fromarray(GREY.astype(np.uint8)).convert("P")),
    ],
)
def test_every_mode_decodes_to_the_same_picture(tmp_path: Path, name: str, image: Image) -> None:
    image.save(tmp_path / name)
    found = read_image(tmp_path / name, white=65535)
    assert found.shape == (48, 64, 3) and found.dtype == np.uint8
    assert np.abs(found[..., 1] - GREY).max() < 12  # JPEG's and the palette's rounding


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(GREY.astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    upright = np.rot90(GREY.astype(np.uint8), k=-1)
    assert np.array_equal(read_image(tmp_path / "turned.png")[..., 0], upright)


def test_a_truncated_image_is_named(project: Project) -> None:
    bad = Path("photos/images/train/002.jpg")
    bad.write_bytes(bad.read_bytes()[:700])
    empty = Path("photos/images/val/001.jpg")
    empty.write_bytes(b"")
    project.fails("prepare", "2 of 9 images are bad", str(bad), str(empty), "Replace or remove")
    assert not Path("data/index.csv").exists()


def test_duplicate_stems_are_named(project: Project) -> None:
    Image.new("RGB", (128, 96)).save("photos/images/train/002.png")
    project.fails("prepare", "002.jpg", "002.png", "is used twice", "rename one")


def test_missing_and_empty_folders(project: Project) -> None:
    project.set("datasets.tiny.root", "nowhere")
    project.fails("prepare", "nowhere does not exist", "datasets.<name>.root")
    project.set("datasets.tiny.root", "photos")
    project.set("datasets.tiny.eval", "test")
    project.fails("prepare", "has no split test; it has train, val")
    Path("photos/images/test").mkdir()
    project.fails("prepare", "the split test is empty", "photos/images/test")
    Path("bare").mkdir()
    project.set("datasets.tiny", {"root": "bare", "train": "all", "eval": "all"})
    project.fails("prepare", "the split all is empty")


def test_loose_photos_are_one_split(project: Project) -> None:
    Path("loose/holiday").mkdir(parents=True)
    for name in ("a.jpg", "holiday/a.jpg", "holiday/b.webp"):
        Image.new("RGB", (40, 30), "teal").save(f"loose/{name}")
    Path("loose/notes.txt").write_text("no image")
    project.set("datasets.tiny.root", "loose")
    project.fails("prepare", "has no folder `images`", "to `all`")
    project.set("datasets.tiny", {"root": "loose", "train": "all", "eval": "all"})
    project.ok("prepare")
    assert [row.stem for row in read_index("data/index.csv")] == ["a", "holiday/a", "holiday/b"]


@pytest.mark.parametrize(
    ("spoil", "texts"),
    [
        ("size", ["labels/train/001.png", "96", "128"]),
        ("value", ["labels/train/001.png", "9"]),
        ("absent", ["001"]),
        ("truncated", ["labels/train/001.png"]),
    ],
)
def test_bad_labels_are_named_by_prepare(project: Project, spoil: str, texts: list[str]) -> None:
    path = Path("photos/labels/train/001.png")
    if spoil == "size":
        Image.new("L", (64, 96)).save(path)
    elif spoil == "value":
        Image.new("L", (128, 96), 9).save(path)
    elif spoil == "absent":  # in the split that is scored: others may lack some
        Path("photos/labels/val/001.png").unlink()
    else:
        path.write_bytes(path.read_bytes()[:60])
    project.fails("prepare", *texts)


def test_an_index_that_is_none_is_refused(project: Project) -> None:
    project.fails("extract", "data/index.csv is missing", "eigenseg prepare")
    Path("data").mkdir()
    Path("data/index.csv").write_text("a,b\n1,2\n")
    project.fails("extract", "data/index.csv is not as it was written")
    write_table("data/index.csv", ("a", "b"), [(1, 2)], "")
    project.fails("extract", "must have the columns id, split, stem")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (np.linspace(0, 1, 96 * 128, dtype=np.float32), "found floating point from 0 to 1"),
        (np.arange(96 * 128, dtype=np.int32) * 100, "found integers from 0 to 1.229e+06"),
        (np.arange(96 * 128, dtype=np.int32) - 5, "found integers from -5 to"),
    ],
    ids=["float", "32 bits", "negative"],
)
def test_values_without_a_known_range_are_refused(
    tmp_path: Path, values: np.ndarray, text: str
) -> None:
    Image.fromarray(values.reshape(96, 128)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=rf"a\.tif cannot be decoded .*{re.escape(text)}.*8 bits"):
        read_image(tmp_path / "a.tif")


def test_a_strip_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("RGB", (5000, 1)).save(tmp_path / "strip.png")
    with pytest.raises(InputError, match=r"differ at most 50 times, found 5000 x 1 px: cut it"):
        read_image(tmp_path / "strip.png")
    Image.new("RGB", (400, 8)).save(tmp_path / "banner.png")
    assert read_image(tmp_path / "banner.png").shape == (8, 400, 3)

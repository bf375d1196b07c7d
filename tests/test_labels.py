"""Labels: what passes the checks, and the text of every error."""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cache.index import ImageRow
from cache.labels import (
    LabelRow,
    check_label,
    find_labels,
    read_classes,
    read_label,
    read_labels,
    write_labels,
)
from cache.store.errors import InputError
from cache.store.tables import write_table

LABEL = np.array([[0, 1, 2], [2, 255, 0]], dtype=np.uint8)


def save(path: Path, label: np.ndarray = LABEL, mode: str = "L", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(label)
    if mode == "P":
        image.putpalette([value // 3 for value in range(768)])
    elif mode != "L":
        image = image.convert(mode)
    image.save(path, **options)
    return path


def row(number: int, split: str, stem: str) -> ImageRow:
    return ImageRow(number, split, stem, f"images/{split}/{stem}.jpg", 2, 3, "0" * 64)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_indices_are_read_raw(tmp_path: Path, mode: str) -> None:
    label = read_label(save(tmp_path / "a.png", mode=mode))
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, LABEL)


def test_palette_indices_of_few_bits_are_read_raw(tmp_path: Path) -> None:
    few = np.array([[0, 1], [3, 2]], dtype=np.uint8)
    path = save(tmp_path / "a.png", few, mode="P", bits=2)
    np.testing.assert_array_equal(read_label(path), few)


def test_check_returns_the_hash_of_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    assert check_label(path, 2, 3, 3).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("mode", ["RGB", "LA", "I;16"])
def test_other_modes_are_rejected(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "a.png", mode=mode)
    with pytest.raises(InputError, match=rf"a\.png: a label must be an index PNG.*mode {mode[0]}"):
        read_label(path)


def test_greys_of_few_bits_are_rejected_for_pillow_stretches_them(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)  # 2 x 1 px of 4-bit grey
    pixels = zlib.compress(bytes([0, 0x12]))
    content = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    with pytest.raises(InputError, match="found mode L of 4 bits"):
        read_label(path)


def test_a_jpeg_named_png_is_rejected(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", format="JPEG")
    with pytest.raises(InputError, match=r"a\.png cannot be decoded as a PNG"):
        read_label(path)


def test_truncation_anywhere_is_found(tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.uint8)
    content = save(tmp_path / "whole.png", label).read_bytes()
    path = tmp_path / "cut.png"
    for length in range(0, len(content) - 12, 7):  # the last 12 bytes only say that the file ends
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cut\.png cannot be decoded as a PNG"):
            check_label(path, 20, 30, 3)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.zeros((50, 50), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 12] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be decoded as a PNG"):
        read_label(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.png cannot be read \(No such file"):
        read_label(tmp_path / "gone.png")


def test_a_label_changed_since_prepare_is_found(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    digest = check_label(path, 2, 3, 3).sha256
    np.testing.assert_array_equal(read_label(path, digest), LABEL)
    save(path, 2 - LABEL % 3)
    with pytest.raises(InputError, match=r"a\.png has changed since it was checked: run prepare"):
        read_label(path, digest)


def test_values_outside_the_classes_are_listed(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[0, 1, 7], [254, 255, 7]], dtype=np.uint8))
    with pytest.raises(InputError, match=r"a\.png.*0\.\.1 \(2 classes.*found 7, 254\."):
        check_label(path, 2, 3, 2)


def test_a_label_of_another_size_is_rejected(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png.*image's size, 2 x 3 px.*found 3 x 2"):
        check_label(path, 3, 2, 3)


def test_labels_are_found_by_split_and_stem(tmp_path: Path) -> None:
    rows = [row(0, "train", "b"), row(1, "train", "city/a"), row(2, "test", "b")]
    paths = [save(tmp_path / f"labels/train/{stem}.png") for stem in ("b", "city/a")]
    found, _ = find_labels(tmp_path, rows, ["sky", "road", "tree"])
    assert [(label.image, label.path) for label in found] == [
        (0, str(paths[0])),
        (1, str(paths[1])),
    ]
    assert found[0].sha256 == hashlib.sha256(paths[0].read_bytes()).hexdigest()


def test_no_labels_at_all_are_fine(tmp_path: Path) -> None:
    assert find_labels(tmp_path, [row(0, "all", "a")], []) == ([], [])


def test_every_fault_is_in_one_error(tmp_path: Path) -> None:
    rows = [row(i, "val", name) for i, name in enumerate(("good", "gone", "large", "cut", "wide"))]
    save(tmp_path / "labels/val/good.png")
    save(tmp_path / "labels/val/large.png", LABEL + np.uint8(3))
    cut = save(tmp_path / "labels/val/cut.png")
    cut.write_bytes(cut.read_bytes()[:40])
    save(tmp_path / "labels/val/wide.png", np.zeros((2, 5), dtype=np.uint8))
    with pytest.raises(InputError) as caught:
        find_labels(tmp_path, rows, ["sky", "road", "tree"], scored="val")
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert "every image of a labelled split must have a label" in lines[1]
    assert "1 lack theirs: gone. Add or rename them" in lines[1]
    assert "large.png" in lines[2] and "found 3, 4, 5." in lines[2]
    assert "cut.png cannot be decoded" in lines[3]
    assert "wide.png" in lines[4] and "found 5 x 2" in lines[4]


def test_a_long_list_of_missing_labels_is_cut(tmp_path: Path) -> None:
    (tmp_path / "labels/val").mkdir(parents=True)
    with pytest.raises(InputError, match=r"23 lack theirs: i0, .*, i9 and 13 more\. Add"):
        rows = [row(i, "val", f"i{i}") for i in range(23)]
        find_labels(tmp_path, rows, ["sky"], scored="val")


def test_labels_without_classes_are_rejected(tmp_path: Path) -> None:
    save(tmp_path / "labels/val/a.png")
    with pytest.raises(InputError, match=r"has labels but no classes\.txt"):
        find_labels(tmp_path, [row(0, "val", "a")], [])


def test_classes_are_read_by_line(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("sky\r\ntraffic light, red\n\n")
    assert read_classes(tmp_path) == ["sky", "traffic light, red"]
    assert read_classes(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sky\n\nroad\n", "line 2 is empty"),
        ("sky\nroad\nsky\n", "line 3 is 'sky' again"),
        ("".join(f"c{i}\n" for i in range(256)), "room for 255 classes.*found 256"),
    ],
)
def test_faults_in_classes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_classes(tmp_path)


def test_the_index_of_labels_comes_back(tmp_path: Path) -> None:
    classes = {"a": ["sky", 'traffic "light", red', "Straße"], "b": ["sky"]}
    rows = [LabelRow(3, "a, b.png", "ab" * 32), LabelRow(5, "c.png", "cd" * 32)]
    write_labels(tmp_path / "labels.csv", classes, rows, [])
    assert read_labels(tmp_path / "labels.csv", []) == (classes, {3: rows[0], 5: rows[1]})
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"]


def test_without_labels_the_index_is_empty(tmp_path: Path) -> None:
    write_labels(tmp_path / "labels.csv", {}, [], [])
    assert read_labels(tmp_path / "labels.csv", []) == ({}, {})


def test_an_index_that_is_missing_or_foreign_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"labels\.csv is missing: run `eigenseg prepare`"):
        read_labels(tmp_path / "labels.csv", [])
    (tmp_path / "labels.csv").write_text("id,path\n")
    with pytest.raises(InputError, match=r"is not as it was written.*run `eigenseg prepare`"):
        read_labels(tmp_path / "labels.csv", [])
    write_table(tmp_path / "labels.csv", ("id", "path"), [], "")
    with pytest.raises(InputError, match=r"must have the columns kind, .*run `eigenseg prepare`"):
        read_labels(tmp_path / "labels.csv", [])
    image = ImageRow(0, "val", "a", "a.jpg", 1, 1, "")
    write_labels(tmp_path / "labels.csv", {}, [], [image])
    with pytest.raises(InputError, match="must be of the images in the index, found others"):
        read_labels(tmp_path / "labels.csv", [image._replace(path="b.jpg")])

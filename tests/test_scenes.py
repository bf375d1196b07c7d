"""Drawn scenes: deterministic, complete, textured, and a data set that prepare accepts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cache.labels import find_labels, read_classes
from cache.photos import check_images
from demo.draw import CLASSES, draw_scene, scene_generator
from demo.draw.__main__ import draw, main
from demo.draw.canvas import (
    BUILDING,
    CAR,
    FAINT,
    GRASS,
    NEAR,
    PERSON,
    POLE,
    ROAD,
    SCALE,
    SIGN,
    SKY,
    Camera,
    Canvas,
    clip_near,
    noise,
    rest,
    rgb,
)
from demo.draw.grounds import Ground, meadow, mountains, sky
from demo.draw.photo import vote
from demo.draw.solids import Faces, paint_faces
from demo.draw.weather import weather
from tests.conftest import REPOSITORY

FROZEN = REPOSITORY / "demo/scenes"


def run(out: Path, *choices: str) -> Result:
    """The command."""
    return CliRunner().invoke(main, ["--out", str(out), "--workers", "1", *choices])


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [draw_scene(scene_generator(0, 0, n), 96, 128) for n in range(24)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first images of the data set, drawn anew by the command."""
    out = tmp_path_factory.mktemp("drawn") / "scenes"
    result = run(out, "--train", "2", "--val", "1")
    assert result.exit_code == 0, result.output
    return out


def test_a_scene_has_the_size_and_the_types_that_it_should() -> None:
    image, labels = draw_scene(scene_generator(3, 0, 0))
    assert image.shape == (240, 320, 3) and image.dtype == np.uint8
    assert labels.shape == (240, 320) and labels.dtype == np.uint8
    assert labels.max() < len(CLASSES)


def test_the_same_generator_gives_the_same_bytes_and_others_do_not() -> None:
    def bytes_of(*key: int) -> bytes:
        return b"".join(part.tobytes() for part in draw_scene(scene_generator(*key), 96, 128))

    first = bytes_of(0, 0, 5)
    assert bytes_of(0, 0, 5) == first
    assert len({first, bytes_of(1, 0, 5), bytes_of(0, 1, 5), bytes_of(0, 0, 6)}) == 4


def test_every_class_occurs_and_thin_classes_are_rare(scenes: list) -> None:
    counts = np.sum([np.bincount(part.ravel(), minlength=12) for _, part in scenes], axis=0)
    shares = counts / counts.sum()
    assert len(CLASSES) >= 8 and (shares > 0).all()
    for thin in (POLE, SIGN, PERSON):
        assert 0.001 < shares[thin] < 0.03, CLASSES[thin]


def test_streets_and_landscapes_are_about_half_each(scenes: list) -> None:
    streets = sum(CLASSES.index("pavement") in labels for _, labels in scenes)
    assert 6 <= streets <= 18


def test_colours_inside_a_class_are_textured(scenes: list) -> None:
    for index in (GRASS, ROAD, BUILDING, CLASSES.index("tree")):
        deviations = [
            image[labels == index].std(axis=0).mean()
            for image, labels in scenes
            if (labels == index).sum() > 300
        ]
        assert np.median(deviations) > 10 and min(deviations) > 2, CLASSES[index]


def test_colours_change_where_labels_change(scenes: list) -> None:
    """Labels and colours come from the same masks: their edges fall together."""
    ratios = []
    for image, labels in scenes:
        step = np.abs(np.diff(image.astype(float), axis=1)).sum(axis=2)
        edge = labels[:, 1:] != labels[:, :-1]
        ratios.append(step[edge].mean() / step[~edge].mean())
    assert np.median(ratios) > 2 and min(ratios) > 1


def test_noise_is_seamless_and_fades_before_it_aliases() -> None:
    u = np.linspace(-40, 40, 40001, dtype=np.float32)
    values = noise(u, np.zeros_like(u), octaves=1)
    assert 0.3 < values.std() < 0.6
    assert np.abs(np.diff(values)).max() < 0.16  # a seam at 0 or at a period would step by std
    assert not noise(u, u, size=2.0).any()


def test_rest_is_the_remainder() -> None:
    quarters = np.arange(-40, 40, dtype=np.float32) / 4  # exact in floats
    assert np.array_equal(rest(quarters, 0.5), quarters % 0.5)
    assert np.array_equal(rest(quarters), quarters % 1)


def test_a_pixel_has_the_label_of_most_of_its_samples() -> None:
    four = [[3, 3, 5, 3], [7, 9, 9, 2], [1, 8, 8, 1], [4, 4, 4, 4], [0, 6, 2, 1]]
    labels = np.block([np.array(samples, np.uint8).reshape(SCALE, SCALE) for samples in four])
    assert vote(labels).tolist() == [[3, 9, 8, 4, 6]]  # of equal votes the thinner class has it


def test_fog_hides_what_is_farther_than_one_sees() -> None:
    """Beyond `Light.reach` picture and labels show sky; a little nearer the thing is there."""
    light = replace(weather(np.random.default_rng(0)), haze=0.02)
    assert np.exp(-light.haze * light.reach) == pytest.approx(FAINT)
    canvas = Canvas(48, 64, Camera(focal=100.0, centre=64.0, horizon=40.0, height=2.0), light)
    sky(canvas, (1.0, 2.0))
    mountains(canvas, (3.0, 4.0), 0.3, light.reach * 1.01, rgb(100, 90, 80))
    assert (canvas.labels == SKY).all()
    meadow(Ground(canvas, (5.0, 6.0)), 0.0)
    first = 40 + 100 * 2 / light.reach  # the row of the ground at that distance
    assert (canvas.labels[: int(first)] == SKY).all()
    assert (canvas.labels[int(first) + 1 :] == GRASS).all()
    mountains(canvas, (3.0, 4.0), 0.3, light.reach * 0.99, rgb(100, 90, 80))
    assert CLASSES.index("mountain") in canvas.labels


def test_of_a_solid_only_what_faces_the_camera_is_painted() -> None:
    canvas = Canvas(48, 64, Camera(100.0, 64.0, 48.0, 0.0), weather(np.random.default_rng(0)))
    front = np.array([[[-1, 0, 5], [-1, 1, 5], [1, 1, 5], [1, 0, 5.0]]])  # clockwise from here
    paint_faces(canvas, Faces.of(front[:, ::-1], rgb(200, 0, 0), 0.0, 0, solid=True), CAR)
    assert not (canvas.labels == CAR).any()
    paint_faces(canvas, Faces.of(front, rgb(200, 0, 0), 0.0, 0, solid=True), CAR)
    rows, columns = np.nonzero(canvas.labels == CAR)
    assert (rows.min(), rows.max()) == pytest.approx((28, 48), abs=1)
    assert (columns.min(), columns.max()) == pytest.approx((44, 84), abs=1)
    paint_faces(canvas, Faces.of(front - (0, 0, 4.6), rgb(200, 0, 0), 0.0, 0), SIGN)
    assert SIGN not in canvas.labels  # nearer than NEAR


def test_polygons_are_cut_at_the_near_plane() -> None:
    square = [np.array([0.0, 0.0, z]) for z in (-1.0, 3.0)] + [np.array([2.0, 0.0, 3.0])]
    cut = clip_near(square)
    assert len(cut) == 4 and min(corner[2] for corner in cut) == pytest.approx(NEAR)
    assert clip_near([corner - (0, 0, 9) for corner in square]) == []


def test_prepare_accepts_the_frozen_data_set() -> None:
    rows, _ = check_images(FROZEN, ("train", "val"))
    assert [row.split for row in rows] == ["train"] * 96 + ["val"] * 32
    assert {(row.height, row.width) for row in rows} == {(240, 320)}
    assert read_classes(FROZEN) == list(CLASSES)
    assert len(find_labels(FROZEN, rows, CLASSES)[0]) == 128
    assert sum(path.stat().st_size for path in FROZEN.rglob("*") if path.is_file()) < 7e6


def test_the_program_draws_what_was_frozen(written: Path) -> None:
    for path in written.rglob("*.png"):
        with Image.open(path) as now, Image.open(FROZEN / path.relative_to(written)) as frozen:
            assert now.mode == frozen.mode == "P"
            # Another version of NumPy may round a sample at an edge to its neighbour.
            assert (np.asarray(now) == np.asarray(frozen)).mean() > 0.999
    for path in written.rglob("*.jpg"):
        with Image.open(path) as now, Image.open(FROZEN / path.relative_to(written)) as frozen:
            assert np.abs(np.asarray(now).astype(int) - np.asarray(frozen)).mean() < 1


def test_the_number_of_processes_does_not_change_a_scene() -> None:
    keys = [(7, 1, 1), (7, 0, 3), (7, 1, 0)]
    alone, together = (list(draw(keys, workers)) for workers in (1, 2))
    for first, second in zip(alone, together, strict=True):
        for one, other in zip(first, second, strict=True):
            assert one.tobytes() == other.tobytes()


def test_files_hold_the_scene_of_their_seed_split_and_number(written: Path) -> None:
    image, labels = draw_scene(scene_generator(0, 1, 0))
    with Image.open(written / "labels/val/000.png") as file:
        assert file.mode == "P" and np.array_equal(np.asarray(file), labels)
    with Image.open(written / "images/val/000.jpg") as file:
        assert np.abs(np.asarray(file).astype(int) - image).mean() < 3


def test_a_folder_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    result = run(tmp_path)
    assert result.exit_code == 1 and "must not exist yet" in result.output
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]

"""Drawn scenes: deterministic, complete, textured, and a data set that prepare accepts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from cache.scenes import Scene, write_scenes
from click.testing import CliRunner, Result
from PIL import Image
from stages.scenes import draw, main

from cache.images import check_images
from cache.labels import find_labels, read_classes
from demo.draw import CLASSES, draw_scene, scene_generator
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
from tests.conftest import REPOSITORY, tree_bytes

PALETTE = np.arange(768, dtype=np.uint8).reshape(256, 3)


def run(folder: Path, **scenes: int) -> Result:
    """The command with such a section of params.yaml; it writes to folder/scenes."""
    tree = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({**tree, "scenes": scenes}))
    return CliRunner().invoke(main, ["--params", str(path), "--out", str(folder / "scenes")])


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [draw_scene(scene_generator(0, 0, n), 96, 128) for n in range(24)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set, written by the command."""
    folder = tmp_path_factory.mktemp("drawn")
    result = run(folder, train=2, val=1, seed=0)
    assert result.exit_code == 0, result.output
    assert "2 + 1 images, 12 classes" in result.output
    return folder / "scenes"


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


def test_prepare_accepts_the_data_set(written: Path) -> None:
    rows = check_images(written, ("train", "val"))
    assert [(row.split, row.stem) for row in rows] == [
        ("train", "000"), ("train", "001"), ("val", "000"),
    ]  # fmt: skip
    assert {(row.height, row.width) for row in rows} == {(240, 320)}
    assert read_classes(written) == list(CLASSES)
    assert len(find_labels(written, rows, CLASSES)) == 3
    assert not list(written.parent.glob(".work/*"))


def test_the_number_of_processes_does_not_change_a_scene() -> None:
    places = [("val", 1), ("train", 3), ("val", 0)]
    alone, together = (list(draw(7, places, workers)) for workers in (1, 2))
    assert [(scene.split, scene.number) for scene in together] == places
    for first, second in zip(alone, together, strict=True):
        assert first.image.tobytes() == second.image.tobytes()
        assert first.labels.tobytes() == second.labels.tobytes()


def test_files_hold_the_scene_of_their_seed_split_and_number(written: Path) -> None:
    image, labels = draw_scene(scene_generator(0, 1, 0))
    with Image.open(written / "labels/val/000.png") as file:
        assert file.mode == "P" and np.array_equal(np.asarray(file), labels)
    with Image.open(written / "images/val/000.jpg") as file:
        assert np.abs(np.asarray(file).astype(int) - image).mean() < 3


def test_more_images_leave_the_first_ones_as_they_are(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.scenes._cores", lambda: 1)
    assert run(tmp_path, train=1, val=2, seed=0).exit_code == 0
    former, now = tree_bytes(written), tree_bytes(tmp_path / "scenes")
    same = [name for name in former if name in now and name.endswith(("jpg", "png"))]
    assert len(same) == 4 and all(former[name] == now[name] for name in same)


def _some(count: int, fails: bool = False) -> Iterator[Scene]:
    for number in range(count):
        yield Scene("train", number, *draw_scene(scene_generator(0, 0, number), 24, 32))
    if fails:
        raise ArithmeticError("stopped")


def test_a_data_set_is_whole_or_absent(tmp_path: Path) -> None:
    out = tmp_path / "scenes"
    with pytest.raises(ArithmeticError):
        write_scenes(out, CLASSES, PALETTE, _some(2, fails=True), {"seed": 0})
    assert not out.exists()
    write_scenes(out, CLASSES, PALETTE, _some(1), {"seed": 0})
    assert len(list(out.rglob("*.jpg"))) == 1  # nothing of the failed run is left
    before = tree_bytes(out)
    with pytest.raises(ArithmeticError):
        write_scenes(out, CLASSES, PALETTE, _some(2, fails=True), {"seed": 1})
    assert tree_bytes(out) == before


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "photo.jpg").write_bytes(b"mine")
    result = run(tmp_path, train=1, val=1, seed=0)
    assert result.exit_code == 1
    for text in ("must be absent or a data set of drawn scenes", "not overwritten", "--out"):
        assert text in result.output
    assert [path.read_bytes() for path in (tmp_path / "scenes").iterdir()] == [b"mine"]


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ({"train": 0, "val": 1, "seed": 0}, "scenes.train: Input should be greater than or equal"),
        ({"train": 1, "val": 1, "seed": -1}, "scenes.seed: Input should be greater than or equal"),
        ({"train": 1, "val": True, "seed": 0}, "scenes.val: Input should be a valid integer"),
        ({"train": 1, "vall": 1, "seed": 0}, "scenes.vall: unknown key; valid here: train, val"),
    ],
)
def test_a_faulty_section_draws_nothing(tmp_path: Path, fault: dict, text: str) -> None:
    result = run(tmp_path, **fault)
    assert result.exit_code == 1 and text in result.output
    assert not (tmp_path / "scenes").exists()

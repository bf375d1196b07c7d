"""New images through a trained head: the same maps as extract and segment, and what goes wrong."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cache import heads, predictions, results
from cache.images import read_image
from cache.index import read_index
from cache.segments import PREDICTORS, Segments
from cache.store.artefact import read_manifest, write_manifest
from eigenseg import backbone as door
from eigenseg.segmenter import Segmenter
from pipeline.drawing.colours import OPACITY, blend, class_colours, colour, overlay, palette
from stages import predict
from tests.conftest import Project, draw_scene, make_dataset


def finish(folder: Path, weights: Path, **choices: Any) -> Project:
    """Run prepare to eval in a new folder; ``a__b`` sets the parameter ``a.b``."""
    make_dataset(folder / "photos", {"train": 6, "val": 2})
    image, labels = draw_scene(np.random.default_rng(1), 150, 70)
    for kind, pixels in (("images", image), ("labels", labels)):
        Image.fromarray(pixels).save(folder / f"photos/{kind}/val/tall.png")
    project = Project(folder, weights)
    # Products of other shapes may round otherwise: one tile at a time, as predict has it here.
    for name, value in {"extract.batch": 1, "train.epochs": 1, **choices}.items():
        project.set(name.replace("__", "."), value)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        project.ok("prepare", "extract", "context", "graph", "train", "segment", "eval")
    return project


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    return finish(tmp_path_factory.mktemp("finished"), weights).folder


@pytest.fixture
def trained(
    finished: Path, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> Project:
    """A copy of a project that has run up to eval."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path, weights)


def stored(folder: Path, predictor: str, matching: str | None) -> dict[str, np.ndarray]:
    """Label maps of the segment stage by name of the image: classes, or clusters for None."""
    (mapping,) = results.read_mappings(folder / "results/mapping.json").values()
    with Segments(folder / "data/segments.h5") as store:
        found = {
            f"{row.split}/{row.stem}": store.read(predictor, row.id)
            for row in read_index(folder / "data/index.csv")
        }
    if matching is None:
        return found
    classes = mapping.clusters[predictor][matching]
    return {name: np.where(classes < 0, 255, classes)[clusters] for name, clusters in found.items()}


def written(out: str = "found") -> dict[str, np.ndarray]:
    folder = Path(out) / "labels"
    return {
        path.relative_to(folder).with_suffix("").as_posix(): np.asarray(Image.open(path))
        for path in folder.rglob("*.png")
    }


def check_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, labels in expected.items():
        np.testing.assert_array_equal(found[name], labels, err_msg=name)


def predict_ok(project: Project, *arguments: str) -> str:
    result = project.run("predict", *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def predict_fails(project: Project, *arguments: str) -> str:
    result = project.run("predict", *arguments)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    return result.output


def test_equals_extract_and_segment_with_nothing_but_the_head(trained: Project) -> None:
    cases = [(name, "majority_iou") for name in PREDICTORS] + [("ours", "hungarian")]
    expected = {case: stored(Path("."), *case) for case in cases}
    assert any((labels == 255).any() for labels in expected["ours", "hungarian"].values())
    shutil.rmtree("data/features.zarr")
    for name in ("params.yaml", "data/graph.h5", "data/index.csv", "data/segments.h5"):
        Path(name).unlink()
    for number, (predictor, matching) in enumerate(cases):
        out = f"found{number}"
        text = predict_ok(
            trained, "photos/images", "--out", out, "--device", "cpu",
            "--predictor", predictor, "--matching", matching,
        )  # fmt: skip
        assert f"{out}: 9 of 9 images, classes by {matching} of {predictor}" in text
        check_equal(written(out), expected[predictor, matching])
        assert Path(out, "classes.txt").read_text() == Path("photos/classes.txt").read_text()


def test_merged_clusters_equal_segment_and_need_the_same_number(trained: Project) -> None:
    trained.set("segment.merge_to", 3)
    trained.ok("segment", "eval")
    text = predict_fails(trained, "photos/images", "--out", "all")
    assert "the mapping must be of 6 segments, found one of 3: give --merge-to 3" in text
    predict_ok(trained, "photos/images", "--out", "merged", "--merge-to", "3")
    check_equal(written("merged"), stored(Path("."), "ours", "majority_count"))
    text = predict_fails(trained, "photos/images", "--out", "none", "--merge-to", "9")
    assert "--merge-to must not exceed the 6 clusters of the head" in text


def test_windows_and_keys_equal_extract_and_segment(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = {"head__levels": ["first", "context", 2, "keys"], "kmeans__level": "keys"}
    others = {"graph__level": "keys", "backbones__tiny__context": {2: 1.0, "keys": 0.5}}
    blocks = {"extract__blocks": ["first", 2], "extract__keys": True}
    tiling = {"extract__train__window": 64, "extract__train__stride": 48}
    paper = {"train__start": "random", "head__orthogonal": True, "head__level_norm": True}
    choices = {**levels, **others, **blocks, **tiling, **paper, "head__width": 64}
    project = finish(tmp_path, weights, **choices)
    monkeypatch.chdir(tmp_path)
    for predictor in PREDICTORS:
        predict_ok(project, "photos/images", "--out", predictor, "--predictor", predictor)
        check_equal(written(predictor), stored(tmp_path, predictor, "majority_count"))
    # With several windows in one pass the rounding may differ, and a pixel here and there.
    state, fitted, manifest = heads.load_head("data/head")
    manifest["backbone"]["params"]["batch"] = 4
    heads.save_head("data/head", state, fitted, manifest)
    found = Segmenter("data/head")("photos/images/val/000.jpg").ids
    assert (found != stored(tmp_path, "ours", None)["val/000"]).mean() < 1e-2


def test_colours_are_those_of_the_report(trained: Project) -> None:
    predict_ok(trained, "photos/images/val/000.jpg", "photos/images/val/tall.png", "--out", "found")
    labels = Image.open("found/labels/tall.png")
    colours = class_colours(4)
    assert labels.mode == "P" and labels.size == (70, 150)
    found = np.asarray(labels.convert("RGB"))
    np.testing.assert_array_equal(found, colour(np.asarray(labels), colours))
    photo = read_image("photos/images/val/tall.png")
    picture = np.asarray(Image.open("found/overlays/tall.jpg"), dtype=float)
    expected = blend(photo, found, OPACITY)
    assert picture.shape == photo.shape and np.abs(picture - expected).mean() < 3
    legend = np.asarray(Image.open("found/legend.png"))
    assert [tuple(legend[24 * row + 12, 12]) for row in range(5)] == [*map(tuple, colours)]
    assert sorted(path.name for path in Path("found").rglob("*") if path.is_file()) == [
        "000.jpg", "000.png", "areas.csv", "classes.txt", "legend.png", "photos.csv",
        "predict.json", "tall.jpg", "tall.png",
    ]  # fmt: skip


def test_an_overlay_is_a_blend_of_bands() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (23, 9, 3), dtype=np.uint8)
    labels = rng.integers(-1, 5, (23, 9))
    colours = class_colours(5)
    expected = blend(image, colour(labels, colours), 0.3)
    np.testing.assert_array_equal(overlay(image, labels, colours, 0.3, rows=5), expected)
    with pytest.raises(ValueError, match=r"must have one shape, found \(23, 9, 3\) and \(22, 9, 3"):
        overlay(image, labels[1:], colours, 0.3)


def test_a_side_that_jpeg_cannot_hold(tmp_path: Path) -> None:
    labels = np.zeros((1, 70_000), np.uint8)
    picture = np.zeros((1, 70_000, 3), np.uint8)
    predictions.write_prediction(tmp_path, "a/b.c", labels, palette(256), picture)
    assert Image.open(tmp_path / "labels/a/b.c.png").size == (70_000, 1)
    assert Image.open(tmp_path / "overlays/a/b.c.png").size == (70_000, 1)


def test_cluster_ids_without_a_mapping(trained: Project) -> None:
    expected = stored(Path("."), "ours", None)
    (mapping,) = read_manifest("results/mapping.json", "")["datasets"].values()
    text = predict_ok(trained, "photos/images", "--out", "asked", "--mapping", "none")
    assert text.endswith("asked: 9 of 9 images, cluster ids of ours\n") and "instead" not in text
    check_equal(written("asked"), expected)
    found = Image.open("asked/labels/val/000.png")
    assert np.array_equal(np.asarray(found.convert("RGB")), palette(6)[np.asarray(found)])
    assert not Path("asked/classes.txt").exists() and not Path("asked/legend.png").exists()

    changes: list[tuple[dict[str, Any] | None, str]] = [
        ({"head": "feed"}, "mapping.json must belong to this head"),
        ({"fitted_on": None}, "mapping.json must name classes, found none: there were no"),
        ({"clusters": 1}, "mapping.json is no mapping from clusters to classes: run"),
        (None, "mapping.json is missing: run `eigenseg eval`"),
    ]
    for number, (change, reason) in enumerate(changes):
        if change is None:
            Path("results/mapping.json").unlink()
        else:
            write_manifest("results/mapping.json", {"datasets": {"tiny": {**mapping, **change}}})
        arguments = ("photos/images/val", "--out", f"out{number}")
        asked = predict_fails(trained, *arguments, "--mapping", "results/mapping.json")
        assert reason in asked and "`--mapping none` writes cluster ids." in asked
        assert not Path(f"out{number}").exists()
        text = predict_ok(trained, *arguments)
        assert reason in text and "Cluster ids are written instead of classes." in text
        np.testing.assert_array_equal(written(f"out{number}")["000"], expected["val/000"])


def test_more_than_256_clusters_take_16_bits(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = finish(tmp_path, weights, clusters=300, extract__train__short_side=128)
    monkeypatch.chdir(tmp_path)
    predict_ok(project, "photos/images", "--out", "ids", "--mapping", "none")
    found = written("ids")
    check_equal(found, stored(tmp_path, "ours", None))
    assert {labels.dtype for labels in found.values()} == {np.dtype(np.uint16)}
    assert max(labels.max() for labels in found.values()) > 255
    predict_ok(project, "photos/images", "--out", "classes")
    check_equal(written("classes"), stored(tmp_path, "ours", "majority_count"))


def test_bad_files_do_not_stop_the_others(trained: Project) -> None:
    Path("photos/images/val/broken.jpg").write_bytes(b"\xff\xd8 no photo")
    whole = Path("photos/images/val/001.jpg").read_bytes()
    Path("photos/images/val/cut.jpg").write_bytes(whole[:800])
    text = predict_fails(trained, "photos/images/val", "--out", "found")
    assert "found: 3 of 5 images; the others have faults:" in text
    for name in ("broken.jpg", "cut.jpg"):
        assert f"photos/images/val/{name} cannot be decoded" in text
    assert "Replace or remove the file, then run predict again." in text and "prepare" not in text
    assert written().keys() == {"000", "001", "tall"}
    assert not list(Path("found").rglob("*.partial"))


def test_features_that_are_not_finite_name_the_image(
    trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = door.half_tokens

    def spoilt(backbone: Any, pixels: torch.Tensor, levels: Any) -> dict[str, np.ndarray]:
        found = made(backbone, pixels, levels)
        if pixels.shape[2] > pixels.shape[3]:
            found["block_00"][0, 3, 3] = np.inf
        return found

    monkeypatch.setattr(door, "half_tokens", spoilt)
    text = predict_fails(trained, "photos/images/val", "--out", "found")
    assert "photos/images/val/tall.png: its features are NaN or beyond float16" in text
    assert written().keys() == {"000", "001"}


def test_inputs_that_are_no_images(trained: Project) -> None:
    Path("empty").mkdir()
    shutil.copy("photos/images/val/000.jpg", "empty/.000.jpg")
    Path("empty/notes.txt").write_text("no image")
    text = predict_fails(trained, "empty", "--out", "found")
    assert "empty must hold at least one image (.jpg, " in text
    text = predict_fails(trained, "empty", "absent.jpg", "--out", "found")
    assert "must be an image file or a folder of images, found nothing at absent.jpg" in text
    assert trained.run("predict", "--out", "found").exit_code == 2
    assert not Path("found").exists()


def test_two_images_of_one_name(trained: Project) -> None:
    sets = ("photos/images/train", "photos/images/val")
    for folder in (*sets, *sets):  # again: the same names
        predict_ok(trained, folder, "--out", "found", "--export", "data_set")
    maps = written("found")
    assert len(maps) == 9 and {"000", "001", "002", "tall"} < maps.keys()
    expected = stored(Path("."), "ours", "majority_iou")
    with open("found/photos.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["photo"] != "seal"]
    assert len(rows) == 9
    for row in rows:
        name = Path(row["path"]).relative_to(Path("photos/images").resolve()).with_suffix("")
        np.testing.assert_array_equal(maps[row["photo"]], expected[name.as_posix()])
    for kind in ("images", "labels"):
        names = {path.stem for path in Path("data_set", kind, "train").iterdir()}
        assert names == maps.keys()
    predict_ok(trained, *sets, "--out", "together")
    assert written("together").keys() == maps.keys()


def test_an_error_of_writing_belongs_to_its_photo(trained: Project) -> None:
    shutil.copy("photos/images/val/000.jpg", f"{'m' * 251}.jpg")
    text = predict_ok(trained, "photos/images/val/000.jpg", f"{'m' * 251}.jpg", "--out", "found")
    assert "2 of 2 images" in text
    Path("other/labels/001.png").mkdir(parents=True)
    Path("other/predict.json").write_bytes(Path("found/predict.json").read_bytes())
    (Path("other/labels/001.png") / "in_the_way").write_text("")
    shutil.copy("photos/images/val/001.jpg", "z.jpg")
    names = ("photos/images/val/000.jpg", "photos/images/val/001.jpg", "z.jpg")
    predict_ok(trained, *names, "--out", "other")  # a folder of that name is another's, too
    assert len(list(Path("other/labels").glob("*.png"))) == 4


def test_a_full_disk_stops_predict_and_a_refused_write_does_not(
    trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, code = predict.write_label_map, errno.EACCES

    def fail(out: str, name: str, *rest: Any) -> np.ndarray:
        if name == "000":
            raise OSError(code, os.strerror(code), name)
        return write(out, name, *rest)

    monkeypatch.setattr(predict, "write_label_map", fail)
    text = predict_fails(trained, "photos/images/val", "--out", "found")
    assert "2 of 3 images" in text and "000.jpg: its results cannot be written" in text
    code = errno.ENOSPC
    assert "the disk is full" in predict_fails(trained, "photos/images/val", "--out", "other")


def test_the_range_of_training_is_the_range_of_predict(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng, 96, 128)[0][..., 0].astype(np.uint16) for _ in range(4)]
    Path("deep").mkdir()
    for number, scene in enumerate(scenes):  # 12 bits, the last darker than all others
        Image.fromarray(scene * (16 if number < 3 else 4)).save(f"deep/{number}.png")
    project = Project(tmp_path, weights)
    project.set("datasets.tiny", {"root": "deep", "train": "all", "eval": "all"})
    project.set("extract.batch", 1)
    project.set("train.epochs", 1)
    project.ok("prepare", "extract", "context", "graph", "train", "segment")
    assert heads.load_head("data/head")[2]["backbone"]["white"] == 4095
    text = predict_ok(project, "deep/3.png", "--out", "found", "--mapping", "none")
    assert "1 photos of more than 8 bits are read with white = 4095, as in training" in text
    with Segments("data/segments.h5") as store:
        (row,) = [row for row in read_index("data/index.csv") if row.stem == "3"]
        np.testing.assert_array_equal(written("found")["3"], store.read("ours", row.id))


def test_weights_that_moved_are_missing_or_others(
    trained: Project, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("photos/images/val", "--out", "found")
    state, kmeans, manifest = heads.load_head("data/head")
    assert manifest["backbone"]["weights"] == str(weights)
    manifest["backbone"]["weights"] = "moved.safetensors"
    heads.save_head("data/head", state, kmeans, manifest)
    shutil.rmtree("data/head/backbone")  # as if it were too large to travel
    text = predict_fails(trained, *arguments)
    assert "weight file moved.safetensors does not exist" in text
    assert "say where the backbone's weights are now: --weights, or `weights` of" in text
    other = load_file(weights)
    other["norm.bias"] = other["norm.bias"] + 1
    save_file(other, "other.safetensors")
    text = predict_fails(trained, *arguments, "--weights", "other.safetensors")
    assert f"(SHA-256 {manifest['backbone']['weights_sha256'][:16]}), found " in text
    assert "in other.safetensors: name the file that has them with --weights" in text
    assert not Path("found").exists()
    predict_ok(trained, *arguments, "--weights", str(weights))
    assert len(written()) == 3


def test_a_model_in_a_folder_that_moved(trained: Project, weights: Path) -> None:
    arguments = ("photos/images", "--out", "found")
    expected = stored(Path("."), "ours", "majority_count")
    state, kmeans, manifest = heads.load_head("data/head")
    manifest["backbone"].update(model="local-dir:before", weights=None)
    heads.save_head("data/head", state, kmeans, manifest)
    shutil.rmtree("data/head/backbone")
    Path("now").mkdir()
    shutil.copy(weights, "now/model.safetensors")
    facts = {"input_size": [3, 160, 160], "fixed_input_size": True}
    config = {"architecture": "test_vit", "num_classes": 0, "pretrained_cfg": facts}
    Path("now/config.json").write_text(json.dumps(config))
    assert "say where the backbone's weights" in predict_fails(trained, *arguments)
    predict_ok(trained, *arguments, "--weights", "now")
    check_equal(written(), expected)


def test_where_the_weights_lie_is_no_part_of_the_fingerprint(
    trained: Project, weights: Path
) -> None:
    def manifest() -> dict[str, Any]:
        return read_manifest(Path("data/features.zarr/manifest.json"), "")

    before = manifest()
    shutil.copy(weights, "copy.safetensors")
    trained.set("extract.batch", 1)
    trained.set("backbones.tiny.weights", "copy.safetensors")
    trained.ok("extract")
    assert manifest() == {**before, "weights": "copy.safetensors"}


def test_label_maps_of_different_choices_do_not_mix(trained: Project) -> None:
    arguments = ("photos/images", "--out", "photos/images/found")
    for _ in range(2):  # the second time its own pictures lie below the input
        assert "9 of 9 images" in predict_ok(trained, *arguments)
    before = (Path("photos/images/found/predict.json")).read_bytes()
    text = predict_fails(trained, *arguments, "--predictor", "kmeans")
    assert "must hold label maps made in one way, found those of another predictor, values" in text
    assert Path("photos/images/found/predict.json").read_bytes() == before

    truth = Path("photos/labels/val/000.png").read_bytes()
    text = predict_fails(trained, "photos/images", "--out", "photos")
    assert "found photos/labels, photos/classes.txt of something else, which is not over" in text
    assert Path("photos/labels/val/000.png").read_bytes() == truth


def test_bfloat16_only_where_the_hardware_has_it(
    trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = heads.load_head("data/head")[2]
    for stored_as, able in ((True, True), (True, False), (False, True)):
        manifest["backbone"]["bfloat16"] = stored_as
        monkeypatch.setattr(door, "hardware_bfloat16", lambda _, able=able: able)
        found = door.Extractor(manifest["backbone"], Path("data/head"), None, torch.device("cpu"))
        assert found.levels.bfloat16 == (stored_as and able)

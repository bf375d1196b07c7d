"""The door for Python: the same maps as the stages, from any copy of a head, anywhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import eigenseg
from cache.index import read_index
from cache.segments import Segments
from tests.conftest import REPOSITORY, Project, make_dataset

PROTOCOLS: dict[str, dict[str, Any]] = {
    "whole": {"short_side": None, "crop": None, "window": None, "stride": None},
    "crop": {"short_side": 90, "crop": 70, "window": None, "stride": None},
    "sliding": {"short_side": 100, "crop": None, "window": 60, "stride": 40},
}
VIEWS = {"views": 2, "scale": [0.7, 1.4], "crop": 64, "flip": True, "colour": 1.0}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "views": {f"extract.train.{name}": value for name, value in VIEWS.items()},
    "windows": {"extract.train.window": 64, "extract.train.stride": 32},
    "merged": {"segment.merge_to": 3, "segment.temperature": 0.3},
    "labelled": {"train.labelled": 2},
}


def finish(folder: Path, weights: Path, choices: dict[str, Any]) -> Project:
    """Run prepare to eval in a new folder, scored by every protocol."""
    make_dataset(folder / "photos", {"train": 6, "val": 2})
    project = Project(folder, weights)
    # Products of other shapes may round otherwise: one tile at a time, as the door has it here.
    always = {"extract.batch": 1, "protocols": PROTOCOLS, "extract.eval": list(PROTOCOLS)}
    for key, value in {**always, **choices}.items():
        project.set(key, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        project.ok("prepare", "extract", "context", "graph", "train", "segment", "eval")
    return project


@pytest.mark.parametrize("case", CASES)
def test_every_protocol_gives_the_maps_of_the_stages(
    case: str, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(tmp_path, weights, CASES[case])
    monkeypatch.chdir(tmp_path)
    choices: dict[str, Any] = {
        key.partition(".")[2]: value for key, value in CASES[case].items() if "segment" in key
    }
    rows = [row for row in read_index("data/index.csv") if row.split == "val"]
    with Segments("data/segments.h5") as maps:
        for protocol in PROTOCOLS:
            for name in maps.clusters:
                segmenter = eigenseg.Segmenter(
                    "data/head", predictor=name, protocol=protocol, device="cpu", **choices
                )
                for row in rows:
                    found = segmenter(row.path)
                    stored = maps.read(name, row.id, protocol)
                    np.testing.assert_array_equal(found.ids, stored, err_msg=f"{protocol} {name}")
                    assert found.image.shape[:2] == found.ids.shape == found.confidence.shape


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    return finish(tmp_path_factory.mktemp("finished"), weights, {}).folder


def test_a_photo_is_a_path_a_picture_or_an_array(finished: Path) -> None:
    segmenter = eigenseg.Segmenter(finished / "data/head", names=finished / "results/mapping.json")
    path = finished / "photos/images/val/000.jpg"
    found = segmenter(path)
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
        for other in (segmenter(str(path)), segmenter(picture), segmenter(pixels)):
            np.testing.assert_array_equal(other.ids, found.ids)
    assert found.names == ["sky", "meadow", "road", "box"]
    assert found.ids.dtype == np.uint16 and found.classes.dtype == np.uint8
    assert set(np.unique(found.classes)) <= {0, 1, 2, 3, 255}
    assert found.confidence.dtype == np.float32
    assert 0 < found.confidence.min() <= found.confidence.max() <= 1
    assert found.overlay().shape == pixels.shape and found.overlay(0.0).tolist() == pixels.tolist()
    with pytest.raises(ValueError, match=r"uint8 of shape \(H, W, 3\), found float64"):
        segmenter(pixels / 255)
    with pytest.raises(ValueError, match=r"must have 8 bits a channel, found mode I;16"):
        segmenter(Image.fromarray(np.zeros((9, 9), np.uint16)))


def test_what_does_not_fit_is_named(finished: Path) -> None:
    with pytest.raises(eigenseg.InputError, match="the head nowhere is missing: run `eigenseg tr"):
        eigenseg.Segmenter("nowhere")
    with pytest.raises(ValueError, match=r"one of whole, crop, sliding, by which .* found 'full'"):
        eigenseg.Segmenter(finished / "data/head", protocol="full")
    with pytest.raises(eigenseg.InputError, match="mapping must be of 3 segments, found one of 6"):
        names = finished / "results/mapping.json"
        eigenseg.Segmenter(finished / "data/head", merge_to=3, names=names)


def test_the_head_is_copied_to_another_machine(
    finished: Path, tmp_path: Path, weights: Path
) -> None:
    """A process of its own in another folder, where neither project nor weights can be found."""
    expected = eigenseg.Segmenter(finished / "data/head")(finished / "photos/images/val/001.jpg")
    shutil.copytree(finished / "data/head", tmp_path / "elsewhere")
    assert [path.name for path in (tmp_path / "elsewhere/backbone").iterdir()] == [
        "weights.safetensors"
    ]
    shutil.copy(finished / "photos/images/val/001.jpg", tmp_path / "photo.jpg")
    program = (
        "import eigenseg, numpy as np\n"
        "segmenter = eigenseg.Segmenter('elsewhere', device='cpu')\n"
        "np.save('ids.npy', segmenter('photo.jpg').ids)\n"
    )
    hidden = weights.with_suffix(".hidden")
    weights.rename(hidden)
    try:
        subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, check=True,
            env={"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PATH": ""},
        )  # fmt: skip
    finally:
        hidden.rename(weights)
    np.testing.assert_array_equal(np.load(tmp_path / "ids.npy"), expected.ids)


def test_cached_tokens_of_an_image(finished: Path) -> None:
    features = eigenseg.Features.open(finished / "data/features.zarr")
    found = features.image("last", 0)
    assert found.dtype == np.float16 and found.shape == (6, 8, features.channels("last"))
    (tile,) = features.tiles_of_image(0)
    np.testing.assert_array_equal(found.reshape(48, -1), features.tokens("last", tile))
    with pytest.raises(eigenseg.InputError, match=r"no image 99, only 0 to 7"):
        features.image("last", 99)


def test_the_examples_of_the_page_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("data/head", "data/features.zarr", "data/context.zarr"):
        shutil.copytree(finished / name, tmp_path / name)
    (tmp_path / "results").mkdir()
    shutil.copy(finished / "results/mapping.json", tmp_path / "results/mapping.json")
    shutil.copy(finished / "photos/images/val/000.jpg", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    page = (REPOSITORY / "docs/python.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) >= 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert names["result"].names == ["sky", "meadow", "road", "box"]
    assert names["features"].image("last", 0).ndim == 3

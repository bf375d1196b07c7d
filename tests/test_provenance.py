"""Artefacts that do not belong together are refused, and what was only renamed is found again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from cache import features
from cache.store.artefact import sweep, write_bytes
from tests.conftest import REPOSITORY, Project, make_dataset, run_stages

ALL = ("prepare", "extract", "context", "graph", "train", "segment", "eval", "report")


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    make_dataset(folder / "photos", {"train": 6, "val": 3})
    return run_stages(folder, weights, *ALL)


@pytest.fixture
def finished(once: Path, project: Project) -> Project:
    """A copy of a project that has run up to the report."""
    shutil.copytree(once, project.folder, dirs_exist_ok=True)
    project.set("extract.batch", 1)
    return project


@contextmanager
def changed(path: str, content: bytes) -> Iterator[None]:
    """Another content in a file, for a while."""
    before = Path(path).read_bytes()
    assert content != before
    Path(path).write_bytes(content)
    yield
    Path(path).write_bytes(before)


def without_a_line(path: str) -> bytes:
    lines = Path(path).read_bytes().splitlines(keepends=True)
    return b"".join([*lines[:2], *lines[3:]])


@pytest.mark.parametrize(
    ("path", "stages"),
    [
        ("data/index.csv", ("extract", "segment", "eval", "report")),
        ("data/labels.csv", ("eval", "report")),
        ("results/curve.csv", ("report",)),
        ("results/per_class.csv", ("report",)),
        ("results/metrics.json", ("report",)),
        ("results/mapping.json", ("report",)),
        ("results/counts.json", ("report",)),
    ],
)
def test_a_text_that_was_cut_or_edited_is_refused(
    finished: Project, path: str, stages: tuple[str, ...]
) -> None:
    whole = Path(path).read_bytes()
    digit = next(i for i in range(len(whole) // 2, len(whole)) if whole[i : i + 1].isdigit())
    other = b"7" if whole[digit : digit + 1] != b"7" else b"3"
    edited = whole[:digit] + other + whole[digit + 1 :]
    faults = [without_a_line(path), whole[:-7], edited, b""]
    if path != "results/counts.json":  # the digest in it is of its values
        faults += [whole[:-1], whole + b"\n"]
    for content in faults:
        with changed(path, content):
            for stage in stages:
                finished.fails(stage, f"{path} ", "run `eigenseg ")


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_replaced_after_prepare_is_refused(finished: Project, split: str) -> None:
    path = f"photos/images/{split}/001.jpg"
    head = json.loads(Path("data/head/manifest.json").read_text())["fingerprint"]
    given = {"classes": ["thing"], "clusters": [0] * 6}
    names = {"format": 1, "head": head, "predictor": "ours", **given}
    Path("names.json").write_text(json.dumps(names))
    finished.set("segment.names", "names.json")
    Image.new("RGB", (128, 96), "red").save("other.png")  # of the same size
    shutil.rmtree("data/features.zarr")
    with changed(path, Path("other.png").read_bytes()):
        for stage in ("extract", "report", "name"):
            finished.fails(stage, f"{path} has changed since it was checked: run prepare again")
    finished.ok("extract", "report", "name")


def test_an_image_that_was_renamed_keeps_its_label_map(finished: Project) -> None:
    """The index numbers the images anew: by position every map would meet another label."""
    before = json.loads(Path("results/metrics.json").read_text())
    for kind, ending in (("images", "jpg"), ("labels", "png")):
        Path(f"photos/{kind}/val/000.{ending}").rename(f"photos/{kind}/val/zzz.{ending}")
    finished.ok("prepare", "eval", "report")
    assert json.loads(Path("results/metrics.json").read_text()) == before
    finished.fails("segment", "must hold the same images in the same order")


def test_a_label_that_changed_leaves_no_report_of_former_scores(finished: Project) -> None:
    path = "photos/labels/val/000.png"
    with changed(path, Path("photos/labels/val/001.png").read_bytes()):
        finished.ok("prepare")
        finished.fails("report", "counts.json must be of the same labels", "run `eigenseg eval`")
    finished.ok("prepare", "report")


def test_a_report_is_of_one_head_and_one_pair_of_splits(finished: Project) -> None:
    curve, segments = (Path(n).read_bytes() for n in ("results/curve.csv", "data/segments.h5"))
    finished.set("seed", 1)
    finished.ok("report")  # what it shows was made with seed 0, and it says so
    assert "<dd>0</dd>" in Path("results/report/index.html").read_text().replace("\n", "")
    finished.ok("train")
    finished.fails("report", "results/curve.csv does not belong to the head", "eigenseg segment")
    finished.ok("segment")
    finished.fails("report", "counts.json must be of the same segments", "run `eigenseg eval`")
    finished.ok("eval", "report")
    with changed("results/curve.csv", curve):
        finished.fails("report", "results/curve.csv does not belong to the head")
    with changed("data/segments.h5", segments):
        finished.fails("report", "counts.json must be of the same segments")
    finished.set("datasets.tiny.eval", "train")
    finished.fails("report", "counts.json must be of the same eval")


def test_a_fit_of_another_context_is_refused(finished: Project) -> None:
    fit = Path("data/context.zarr") / features.FIT
    former = fit.read_bytes()
    finished.set("context.temperature", 0.5)
    finished.ok("context", "graph")
    assert fit.read_bytes() != former
    fit.write_bytes(former)
    finished.fails("train", str(fit), "another cache than the manifest", "dvc repro context")


WRITER = """
import sys, time
from cache.store import artefact
from cache.store.artefact import write_bytes
artefact.os.replace = lambda *a: (print("here", flush=True), time.sleep(60))
write_bytes(sys.argv[1], b"content")
"""


def test_partial_files_of_killed_writers_are_swept_and_those_of_others_stay(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "index.csv")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"here\n"
        sweep(tmp_path, "index.csv.*")
        assert len(list(tmp_path.glob("*.partial"))) == 1
        process.kill()
    assert len(list(tmp_path.glob("*.partial"))) == 1
    sweep(tmp_path, "labels.csv.*")
    assert len(list(tmp_path.glob("*.partial"))) == 1
    sweep(tmp_path, "index.csv.*")
    assert not list(tmp_path.iterdir())
    write_bytes(tmp_path / "index.csv", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["index.csv"]


def test_partial_files_of_a_killed_predict_are_swept(finished: Project) -> None:
    asked = ("predict", "photos/images/val", "--out", "out", "--mapping", "none")
    assert finished.run(*asked).exit_code == 0
    before = sorted(Path("out").rglob("*"))
    Path("out/labels/000.png.0123.partial").write_bytes(b"half")
    assert finished.run(*asked).exit_code == 0
    assert sorted(Path("out").rglob("*")) == before


def test_work_of_abandoned_settings_is_told_and_can_be_removed(
    finished: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    abandoned = Path("data/.work/graph.h5-0123")
    abandoned.mkdir()
    (abandoned / "part-a.h5").write_bytes(bytes(2_000_000))
    result = finished.run("graph")
    assert "data/.work holds 2.0 MB of unfinished work of other settings" in result.output
    assert "`rm -r data/.work`" in result.output
    shutil.rmtree("data/.work")
    assert "unfinished" not in finished.run("graph").output

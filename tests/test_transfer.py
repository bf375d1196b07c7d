"""Trained on one data set, scored on others: one index, one cache, one head."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from cache.features import Features
from cache.index import read_index
from cache.labels import read_labels
from stages.settings.params import load
from tests.conftest import Project, make_dataset

STAGES = ("extract", "context", "graph", "train", "segment", "name", "eval", "report")


@pytest.fixture
def transfer(project: Project) -> Project:
    """Trained on the project's photos, scored on `other` and on the photos' own split."""
    make_dataset(project.folder / "others", {"train": 1, "test": 2})
    names = project.folder / "others" / "classes.txt"
    names.write_text(names.read_text() + "more\n")
    others = {"root": "others", "train": "train", "eval": "test"}
    project.set("datasets", {**project.tree["datasets"], "other": others})
    project.set("train_on", project.tree["dataset"])
    project.set("eval_on", ["other", project.tree["dataset"]])
    return project


def test_one_head_is_scored_on_each_data_set(transfer: Project) -> None:
    own = transfer.tree["dataset"]
    transfer.ok("prepare", *STAGES)
    rows = read_index("data/index.csv")
    splits = list(dict.fromkeys(row.split for row in rows))
    assert splits == [f"{own}/train", f"{own}/val", "other/test"]
    assert [row.id for row in rows] == list(range(len(rows)))
    classes, truth = read_labels("data/labels.csv", rows)
    assert len(classes["other"]) == len(classes[own]) + 1
    assert all(truth[row.id].path.endswith(f"{row.stem}.png") for row in rows if row.id in truth)
    cache = Features.open("data/features.zarr")
    assert len(cache.tiles_of("other/test")) == 2
    assert set(cache.tiles["image"].tolist()) == set(range(len(rows)))
    metrics = json.loads(Path("results/metrics.json").read_text())
    assert list(metrics) == ["other", own]
    assert list(metrics["other"]["full"]["ours"]["majority_iou"]) == ["oracle"]
    assert list(metrics[own]["full"]["ours"]["majority_iou"]) == ["oracle", "train"]
    page = Path("results/report/index.html").read_text()
    assert f"trained on {own}/train, another data set" in page and "Scores: other/test" in page


def test_only_prepare_looks_at_the_labels_that_are_scored(transfer: Project) -> None:
    transfer.set("eval_on", ["other"])
    for path in Path("photos/labels").rglob("*.png"):
        path.write_bytes(b"no label")
    transfer.ok("prepare", *STAGES)
    rows = read_index("data/index.csv")
    _, truth = read_labels("data/labels.csv", rows)
    assert {row.split for row in rows if row.id in truth} == {"other/test"}


def test_what_is_not_used_changes_no_index(transfer: Project) -> None:
    transfer.ok("prepare")
    before = Path("data/index.csv").read_bytes(), Path("data/labels.csv").read_bytes()
    transfer.set("datasets.other.train", "nothing")
    transfer.ok("prepare")
    assert (Path("data/index.csv").read_bytes(), Path("data/labels.csv").read_bytes()) == before


def test_the_same_scores_alone_and_beside_others(transfer: Project) -> None:
    """What is scored besides changes no number of a data set."""
    own = transfer.tree["dataset"]
    transfer.ok("prepare", *STAGES[:-1])
    both = json.loads(Path("results/metrics.json").read_text())
    transfer.set("eval_on", [own])
    transfer.ok("prepare", *STAGES[:-1])
    assert json.loads(Path("results/metrics.json").read_text()) == {own: both[own]}


def test_each_data_set_is_scored_by_every_protocol_that_one_asks_for(transfer: Project) -> None:
    own = transfer.tree["dataset"]
    crop = {"short_side": 90, "crop": 90, "window": None, "stride": None}
    transfer.set("protocols", {**transfer.tree["protocols"], "crop": crop})
    transfer.set("datasets.other.protocols", ["crop"])
    transfer.ok("prepare", *STAGES)
    metrics = json.loads(Path("results/metrics.json").read_text())
    assert {name: list(scored) for name, scored in metrics.items()} == {
        "other": ["crop", "full"],
        own: ["crop", "full"],
    }
    with open("results/per_class.csv", newline="") as file:
        found = {(row["dataset"], row["variant"]) for row in csv.DictReader(file)}
    assert found == {(name, protocol) for name in metrics for protocol in ("crop", "full")}
    counts = json.loads(Path("results/counts.json").read_text())["datasets"]["other"]["counts"]
    pixels = {name: np.sum(by["ours"]["other/test"]) for name, by in counts.items()}
    assert pixels == {"crop": 2 * 90 * 90, "full": 2 * 96 * 128}
    page = Path("results/report/index.html").read_text()
    headings = [f"{name}, protocol {protocol}<" for name, protocol in found]
    assert all(heading in page for heading in headings)


def test_names_that_are_unknown_or_twice_are_refused(transfer: Project) -> None:
    transfer.set("eval_on", ["other", "other"])
    transfer.fails("prepare", "eval_on: must name each once, found other, other")
    transfer.set("eval_on", ["elsewhere"])
    transfer.fails("prepare", "eval_on: 'elsewhere' is not one of")
    transfer.set("eval_on", None)
    assert load("params.yaml").evaluated == [transfer.tree["dataset"]]

"""Ablations: cells that equal runs of the pipeline, their report, and their DVC file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from cache import ablations, changes, params
from cache.segments import PREDICTORS
from pipeline.evaluation import MATCHINGS
from stages.ablate import DEFAULTS
from stages.report import varied
from tests.conftest import REPOSITORY, Project, tree_bytes
from tests.test_layers import NEUTRAL, closure, name

CHAIN = ("graph", "train", "segment", "eval")
PIPELINE = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
ABLATIONS = yaml.safe_load((REPOSITORY / "ablations/dvc.yaml").read_text())["stages"]
CELL = Path("results/ablations/cell.json")


def ablate(project: Project, setting: str, seed: int) -> tuple[dict, str]:
    """Run one cell; what it wrote and what it printed."""
    result = project.run("ablate", "--set", setting, "--seed", str(seed), "--out", str(CELL))
    assert result.exit_code == 0, result.output
    return json.loads(CELL.read_text()), result.output


@pytest.mark.parametrize(
    ("setting", "seed", "own_graph"),
    [
        (DEFAULTS, 0, False),
        ("graph.alpha=0.5", 1, False),
        ("clusters=4", 2, False),
        ("graph.k=0.2", 0, True),
        ("graph.level=middle", 0, True),
        ("train.beta=2.5", 0, False),
    ],
)
def test_a_cell_scores_what_the_pipeline_does(
    project: Project, setting: str, seed: int, own_graph: bool
) -> None:
    project.ok("prepare", "extract", *CHAIN)
    before = {path: tree_bytes(Path(path)) for path in ("data", "results")}
    cell, output = ablate(project, setting, seed)
    CELL.unlink()
    CELL.parent.rmdir()
    assert {path: tree_bytes(Path(path)) for path in before} == before
    assert not list(Path("data/.work").iterdir())
    assert ("graph.h5: 2 groups" in output or "groups of 6 tiles" in output) == own_graph
    key, _, value = setting.partition("=")
    if setting != DEFAULTS:
        assert (cell["key"], cell["value"]) == (key, yaml.safe_load(value))
        assert cell["default"] == changes.look_up(params.load("params.yaml"), key)
        project.set(key, yaml.safe_load(value))
    project.set("seed", seed)
    project.ok(*CHAIN)
    assert cell["metrics"] == json.loads(Path("results/metrics.json").read_text())
    assert cell["seed"] == seed


def test_a_graph_of_other_features_or_none_is_made_anew(project: Project) -> None:
    project.ok("prepare", "extract", *CHAIN)
    expected, _ = ablate(project, DEFAULTS, 0)
    Path("data/graph.h5").unlink()
    found, output = ablate(project, DEFAULTS, 0)
    assert "groups of 6 tiles" in output and found == expected
    assert not Path("data/graph.h5").exists()


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("graph.alhpa=1", "graph.alhpa: unknown key"),
        (
            "graph.alpha",
            "a setting must be key=value, such as graph.alpha=0.3, found 'graph",
        ),
        ("graph.alpha=[", "a setting must be key=value"),
        ("graph.alpha=-1", "greater than or equal to 0, found -1"),
        ("extract.short_side=200", "share the images and features, found extract.short_side"),
        ("seed=3", "graph, head, train, kmeans, segment, for its cells share"),
    ],
)
def test_a_wrong_setting_is_refused_before_any_work(
    project: Project, setting: str, text: str
) -> None:
    result = project.run("ablate", "--set", setting, "--seed", "0", "--out", str(CELL))
    assert result.exit_code == 1 and text in " ".join(result.output.split())
    assert not Path("data").exists() and not CELL.exists()


def test_without_labels_there_is_nothing_to_compare(project: Project) -> None:
    (project.folder / "photos/labels").rename(project.folder / "unused")
    project.ok("prepare", "extract", *CHAIN)
    result = project.run("ablate", "--seed", "0", "--out", str(CELL))
    assert result.exit_code == 1 and "found no labels of split val" in result.output
    assert not CELL.exists()


def metrics(score: float) -> dict[str, Any]:
    """Made-up scores: 1 more for each further predictor, 10 less for each further matching."""
    return {
        predictor: {"k": 6, "clusters_used": 6}
        | {
            matching: {"oracle": {"miou": score + i - 10 * j, "accuracy": 0.0}}
            for j, matching in enumerate(MATCHINGS)
        }
        for i, predictor in enumerate(PREDICTORS)
    }


def made_up(base: str) -> list[ablations.Cell]:
    """Cells of two seeds each; `train.beta` is null by default."""
    runs = [(None, None, None, 30.0), ("clusters", 128, 64, 50.0), ("clusters", 16, 64, 20.0)]
    runs += [("train.beta", 0.5, None, 40.0), ("graph.level", "middle", "last", 45.0)]
    return [
        ablations.Cell(key, value, default, seed, base, metrics(score + seed / 2))
        for key, value, default, score in runs
        for seed in (0, 1)
    ]


def test_points_hold_every_seed_and_the_defaults_on_each_axis() -> None:
    axes = varied(made_up("a"))
    values = {key: [point.value for point in points] for key, points in axes.items()}
    assert values == {
        "clusters": ["16", "64", "128"],
        "graph.level": ["last", "middle"],
        "train.beta": ["null", "0.5"],
        "seed": ["0", "1"],
    }
    for key, points in axes.items():
        defaults = [point for point in points if point.default]
        assert len(defaults) == (key != "seed")
        for point in defaults:
            assert point.miou["majority_iou"]["ours"] == [30.0, 30.5]
    assert axes["clusters"][2].miou["majority_iou"]["kmeans"] == [52.0, 52.5]
    assert axes["seed"][1].miou["majority_iou"]["ours"] == [30.5]


def test_a_cell_that_repeats_the_defaults_is_not_counted_twice() -> None:
    again = [cell._replace(value=64) for cell in made_up("a") if cell.value == 16]
    points = varied(made_up("a") + again)["clusters"]
    assert [point.value for point in points] == ["16", "64", "128"]
    assert points[1].miou["majority_iou"]["ours"] == [30.0, 30.5]
    (alone,) = varied(again)["clusters"]
    assert alone.default and alone.miou["majority_iou"]["ours"] == [20.0, 20.5]


@pytest.fixture
def reported(project: Project) -> Project:
    """A project whose results are there, with made-up cells of an ablation."""
    project.ok("prepare", "extract", *CHAIN)
    base = ablations.base_of(params.load("params.yaml"))
    for number, cell in enumerate(made_up(base)):
        ablations.write_cell(f"results/ablations/{number}.json", cell)
    return project


def test_the_report_draws_the_cells_it_is_given(reported: Project) -> None:
    reported.ok("report")
    page = Path("results/report/index.html").read_text()
    assert "Ablations" not in page and not list(Path("results/report").glob("ablation*"))
    result = reported.run("report", "--ablations", "results/ablations", "--out", "results/both")
    assert result.exit_code == 0, result.output
    charts = {path.name: path for path in Path("results/both").glob("ablation_*.png")}
    assert set(charts) == {f"ablation_{key}.png" for key in varied(made_up("a"))}
    for path in charts.values():
        with Image.open(path) as image:
            assert np.ptp(np.asarray(image.convert("L"))) > 200 and image.width >= 300
    page = Path("results/both/index.html").read_text()
    row = re.search(r"<tr[^>]*>(?:(?!</tr>).)*64 \(default\).*?</tr>", page)
    assert row
    cells = re.findall(r"<td([^>]*)>([\d.]+ \([\d.]+\))</td>", row[0])
    assert [text for _, text in cells] == [
        f"{30.25 + i - 10 * j:.1f} (0.5)" for j in range(3) for i in range(3)
    ]
    assert [i for i, (look, _) in enumerate(cells) if "best" in look] == [2, 5, 8]
    assert re.search(r">seed</td><td[^>]*>0</td><td[^>]*>30.0</td>", page)  # of one seed, no range
    assert "null (default)" in page and "last (default)" in page


def test_cells_of_other_parameters_are_refused(reported: Project) -> None:
    def refused(*texts: str) -> None:
        result = reported.run("report", "--ablations", "results/ablations", "--out", "out")
        assert result.exit_code == 1 and not Path("out").exists()
        for text in texts:
            assert text in " ".join(result.output.split())

    reported.set("seed", 5)  # every cell has a seed of its own
    reported.set("report.images", 1)
    result = reported.run("report", "--ablations", "results/ablations", "--out", "results/both")
    assert result.exit_code == 0, result.output
    reported.set("train.lr", 0.5)
    refused("0.json must belong to these parameters", "`dvc repro ablations/dvc.yaml`")
    Path("results/ablations/0.json").write_text('{"key": 1}')
    refused("0.json is no cell of an ablation: delete it")
    for path in Path("results/ablations").iterdir():
        path.unlink()
    refused("results/ablations must hold cells of an ablation, found none")


def settings() -> list[str]:
    return ABLATIONS["cell"]["matrix"]["setting"]


@pytest.mark.parametrize("setting", settings())
def test_each_setting_is_valid_and_no_default(setting: str) -> None:
    if setting == DEFAULTS:
        return
    shipped = params.load(REPOSITORY / "params.yaml")
    ((key, value),) = changes.parse_setting(setting).items()
    assert key.split(".")[0] in ablations.VARIED
    changes.apply(shipped, {key: value})
    default = changes.look_up(shipped, key)
    assert value != default, f"{setting} is the default: choose other values in ablations/dvc.yaml"


def test_the_matrix_has_every_axis_and_several_seeds() -> None:
    axes = {setting.split("=")[0] for setting in settings()}
    wanted = {"clusters", "graph.alpha", "train.beta", "graph.k", "graph.level", DEFAULTS}
    assert axes >= wanted and len(settings()) == len(set(settings()))
    assert len(set(ABLATIONS["cell"]["matrix"]["seed"])) >= 3


def test_cells_depend_on_what_the_stages_they_run_depend_on() -> None:
    sections = {key.split(".")[0] for stage in CHAIN for key in PIPELINE[stage]["params"]}
    assert set(ABLATIONS["cell"]["params"]) == sections - {"seed"}
    assert sections - {"seed"} == {*ablations.VARIED, *ablations.SHARED}
    code = {name(path) for path in closure(REPOSITORY / "stages/ablate.py")} - NEUTRAL
    covered = {path for stage in CHAIN for path in PIPELINE[stage]["deps"]}
    made = {"data/head", "data/segments.h5"}  # by the cell itself
    data = {path for path in covered if path.startswith("data/")} - made
    assert set(ABLATIONS["cell"]["deps"]) == data | {"results/metrics.json"} | (code - covered)


def test_the_report_of_ablations_depends_on_what_the_other_does() -> None:
    ours, other = ABLATIONS["report"], PIPELINE["report"]
    assert set(ours["deps"]) == {"results/ablations", *other["deps"]}
    assert set(ours["params"]) == {*other["params"], *ablations.VARIED, *ablations.SHARED}
    assert ours["cmd"].split()[:3] == other["cmd"].split()[:3]

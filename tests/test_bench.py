"""The measuring commands: what they print follows from what they are given."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from bench import kmeans, seeds
from tests.conftest import Project


def metrics(miou: float) -> dict:
    score = {"miou": miou, "accuracy": miou + 30, "classes_covered": 4}
    return {"ours": {"k": 6, "clusters_used": 5, "hungarian": {"oracle": score}}}


def test_seeds_are_averaged_with_their_spread(tmp_path: Path) -> None:
    files = []
    for number, miou in enumerate((30.0, 32.0, 34.0)):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(metrics(miou)))
    result = CliRunner().invoke(seeds.main, [str(path) for path in files])
    assert result.exit_code == 0, result.output
    row = "| ours | 6 (5.0) | hungarian | 32.0 (4.0) | 62.0 (4.0) |  |  | 4.0 (0.0) |"
    assert row in result.output


def test_the_kmeans_sweep_agrees_with_the_stages(project: Project) -> None:
    project.ok("prepare", "extract", "graph", "train", "segment", "eval")
    expected = json.loads(Path("results/metrics.json").read_text())["kmeans"]
    result = CliRunner().invoke(kmeans.main, ["--clusters", "6", "--seeds", "1"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output.splitlines()[-1])
    for matching in ("majority_iou", "hungarian"):
        scores = expected[matching]["oracle"]
        assert abs(found[matching][0][0] - scores["miou"]) < 1e-9
        assert abs(found[matching][0][1] - scores["accuracy"]) < 1e-9

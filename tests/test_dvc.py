"""The stages as DVC runs them: a DAG that reuses what did not change, with metrics and plots."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY, Project, make_dataset

IDENTITY = {
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@example.org",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@example.org",
}


def run(folder: Path, *command: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **IDENTITY, "PATH": path, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A git repository of its own with this project's files as they are now."""
    folder = tmp_path / "clone"
    files = run(REPOSITORY, "git", "ls-files", "-co", "--exclude-standard").split("\n")
    for name in filter(None, files):
        if name != "dvc.lock" and (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    shutil.rmtree(folder / "results", ignore_errors=True)
    run(folder, "git", "init", "-q")
    make_dataset(folder / "data" / "photos", {"train": 4, "val": 2})
    return folder


def test_repro_then_an_experiment_that_reuses_the_features(clone: Path, weights: Path) -> None:
    project = Project(clone, weights)
    project.set("datasets.tiny.root", "data/photos")
    run(clone, "git", "add", "-A")
    run(clone, "git", "commit", "-qm", "start")
    assert "ablations" not in run(clone, "dvc", "repro")
    assert not list((clone / "data/.work").iterdir())
    before = json.loads((clone / "results/metrics.json").read_text())
    assert (clone / "results/report/index.html").is_file()
    run(clone, "git", "add", "-A")
    run(clone, "git", "commit", "-qm", "first results")
    text = run(clone, "dvc", "exp", "run", "-n", "flat", "-S", "graph.alpha=0.0", "-S", "seed=3")
    for stage in ("extract", "context", "graph"):
        assert f"Stage '{stage}' didn't change, skipping" in text
    assert "Running stage 'train'" in text
    assert json.loads((clone / "results/metrics.json").read_text()).keys() == before.keys()
    shown = json.loads(run(clone, "dvc", "exp", "show", "--json"))
    assert "flat" in json.dumps(shown)
    changed = json.loads(run(clone, "dvc", "params", "diff", "--json"))
    assert changed["params.yaml"]["graph.alpha"] == {"old": 0.05, "new": 0.0, "diff": -0.05}
    run(clone, "dvc", "metrics", "diff", "--json")
    plots = run(clone, "dvc", "plots", "diff", "--json", "HEAD")
    assert "curve.csv" in plots
    check_ablations(clone)


def check_ablations(clone: Path) -> None:
    """They run when they are asked for, and again only after a change."""
    file = clone / "ablations/dvc.yaml"
    tree = yaml.safe_load(file.read_text())
    tree["stages"]["cell"]["matrix"] = {"setting": ["graph.alpha=0.3"], "seed": [3]}
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    text = run(clone, "dvc", "repro", "ablations/dvc.yaml")
    assert "Stage 'eval' didn't change, skipping" in text and "Running stage 'report'" not in text
    assert (clone / "results/ablations/graph.alpha=0.3-3.json").is_file()
    assert "Ablations" in (clone / "results/report-ablations/index.html").read_text()
    assert "Running stage 'ablations" not in run(clone, "dvc", "repro", "ablations/dvc.yaml")
    assert "ablations" not in run(clone, "dvc", "repro")
    assert "ablations" not in run(clone, "dvc", "dag", "dvc.yaml")

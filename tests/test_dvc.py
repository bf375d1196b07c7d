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
    """A git repository of its own with this project's files as they are now, without scenes."""
    folder = tmp_path / "clone"
    files = run(REPOSITORY, "git", "ls-files", "-co", "--exclude-standard").split("\n")
    for name in filter(None, files):
        unused = name == "dvc.lock" or name.startswith(("demo/scenes", "tests", "docs"))
        if not unused and (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    run(folder, "git", "init", "-q")
    return folder


def test_repro_then_a_queue_that_reuses_the_features(
    clone: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC runs queued experiments in a copy of the project, in which ignored files are missing."""
    make_dataset(tmp_path / "elsewhere" / "photos", {"train": 4, "val": 2})
    monkeypatch.setenv("EIGENSEG_DATA", str(tmp_path / "elsewhere"))
    Project(clone, weights).set("datasets.tiny.root", "$EIGENSEG_DATA/photos")
    commit(clone, "start")
    run(clone, "dvc", "repro")
    assert not list((clone / "data/.work").iterdir())
    before = json.loads((clone / "results/metrics.json").read_text())
    assert (clone / "results/report/index.html").is_file()
    commit(clone, "first results")
    shown = run(clone, "dvc", "metrics", "show")
    assert "tiny.ours" in shown and max(map(len, shown.splitlines())) <= 80
    run(clone, "dvc", "exp", "run", "--queue", "-S", "graph.alpha=0.0,0.3", "eval")
    text = run(clone, "dvc", "exp", "run", "--run-all")
    for stage in ("extract", "context", "graph"):
        assert text.count(f"Stage '{stage}' didn't change, skipping") == 2, text
    assert text.count("Running stage 'train'") == 2
    assert json.loads((clone / "results/metrics.json").read_text()) == before
    table = run(clone, "dvc", "exp", "show", "--csv")
    (clone / "results/sweep.csv").write_text(table)
    sweep = ("-m", "stages.report", "--sweep", "results/sweep.csv", "--out", "results/swept")
    assert "graph.alpha: 2 values, 2 experiments" in run(clone, sys.executable, *sweep)
    assert (clone / "results/swept/sweep_graph.alpha.png").is_file()
    plots = run(clone, "dvc", "plots", "diff", "--json", "HEAD")
    assert "curve.csv" in plots
    check_status(clone)


def test_two_data_sets_in_turn_in_a_worktree(clone: Path, weights: Path, tmp_path: Path) -> None:
    """Features of the first are restored; masks of 0 and 255 are one of the two."""
    project = Project(clone, weights)
    for name in ("tiny", "other"):
        root = make_dataset(tmp_path / f"Bilder {name} (ü)", {"train": 2, "val": 1})
        project.set(f"datasets.{name}", {"root": str(root), "train": "train", "eval": "val"})
    project.set("datasets.other.values", {255: 1})
    commit(clone, "start")
    tree = tmp_path / "Zweig ü (1)"
    run(clone, "git", "worktree", "add", "-q", str(tree), "HEAD")
    for name in ("tiny", "other"):
        assert "Running stage 'extract'" in run(
            tree, "dvc", "exp", "run", "extract", "-S", f"dataset={name}"
        )
    text = run(tree, "dvc", "exp", "run", "extract", "-S", "dataset=tiny")
    assert "Stage 'extract' is cached - skipping run, checking out outputs" in text
    assert (tree / "data/features.zarr/manifest.json").is_file()


def commit(folder: Path, message: str) -> None:
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", message)


def check_status(clone: Path) -> None:
    """What a run does not use makes nothing run again: other entries, another device, caches."""
    assert "changed" not in run(clone, "dvc", "status", "extract", "context", "graph")
    path = clone / "params.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["backbones"]["another"] = {**tree["backbones"]["tiny"], "model": "vit_tiny_patch16_224"}
    tree["datasets"]["another"] = {"root": "elsewhere", "train": "all", "eval": "all"}
    tree["compute"]["device"] = "cpu"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    (clone / "pipeline/features/__pycache__").mkdir(exist_ok=True)
    (clone / "pipeline/features/__pycache__/other.pyc").write_bytes(b"bytecode")
    assert "changed" not in run(clone, "dvc", "status", "extract", "context", "graph")
    tree["backbones"]["tiny"]["context"] = {"last": 1.0}
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    told = run(clone, "dvc", "status", "extract", "context")
    assert "backbones.tiny.context" in told and "extract:" not in told
    (clone / "pipeline/features/whitening.py").write_text("# changed\n")
    assert "extract:" in run(clone, "dvc", "status", "extract")

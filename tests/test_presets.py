"""Presets: whole params files, with the values of what they are named after."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stages.params import Params, load
from tests.conftest import REPOSITORY, Project

PRESETS = sorted((REPOSITORY / "presets").glob("*.yaml"))


def test_there_are_presets() -> None:
    assert [path.stem for path in PRESETS] == ["paper"]


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_a_whole_params_file(path: Path) -> None:
    assert isinstance(load(path), Params)
    ours, shipped = (yaml.safe_load(file.read_text()) for file in (path, SHIPPED))
    assert list(ours) == list(shipped)
    for section, value in shipped.items():
        if isinstance(value, dict):
            assert list(ours[section]) == list(value), section


SHIPPED = REPOSITORY / "params.yaml"


def test_the_papers_values() -> None:
    params = load(REPOSITORY / "presets/paper.yaml")
    assert params.vit.model.startswith("vit_small_patch16_384.augreg_in21k")
    assert (params.clusters, params.graph.group_images, params.graph.alpha) == (256, 16, 0.3)
    patches = (384 // 16) ** 2 * 16
    assert params.graph.k == pytest.approx(256 / 14_400, rel=0.02) and patches > 256
    assert [(p.k, p.weight) for p in params.graph.pixel] == [(10, 2.0), (5, 0.1)]
    assert params.head.levels == ["first", "middle", "last"] and params.head.width is None
    assert (params.head.depth, params.head.head_dim, params.head.mlp_hidden) == (2, 64, 576)
    assert params.head.orthogonal and params.train.start == "random"
    assert (params.train.epochs, params.train.lr, params.train.lr_end) == (40, 1e-3, 1e-5)
    assert (params.train.tau_start, params.train.tau_end, params.train.beta) == (1.0, 0.3, None)
    assert params.used_levels == {"first", "middle", "last"}


def test_the_papers_choices_run(project: Project) -> None:
    paper = yaml.safe_load((REPOSITORY / "presets/paper.yaml").read_text())
    for section in ("graph", "head", "train", "kmeans", "segment"):
        project.set(section, paper[section])
    for key, value in {"head.head_dim": 16, "train.epochs": 1, "graph.k": 0.1}.items():
        project.set(key, value)
    project.ok("prepare", "extract", "context", "graph", "train", "segment", "eval")

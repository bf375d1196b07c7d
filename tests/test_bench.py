"""The measuring commands: what they print follows from what they are given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from bench import kmeans, knn, scale, seeds
from cache.features import Features
from pipeline.head import Head
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


def test_the_searches_are_compared_with_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cells.EXACT_ROWS", 1000)
    arguments = ["--sizes", "900,4096", "--ks", "5", "--channels", "24", "--queries", "200"]
    result = CliRunner().invoke(knn.main, [*arguments, "--repeats", "1", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output.splitlines()[-1])["rows"]
    assert [row["N"] for row in rows if row["search"] == "FAISS, exact"] == [900, 4096]
    assert [row["N"] for row in rows if row["search"].startswith("cells")] == [4096]
    for row in rows:
        assert row["recall"] > (0.99 if row["search"].startswith(("FAISS, e", "torch")) else 0.9)


def test_the_searched_rows_of_a_cache_are_its_tokens(project: Project) -> None:
    project.ok("prepare", "extract")
    cached = ["--features", "data/features.zarr", "--ks", "5", "--repeats", "1", "--sizes"]
    result = CliRunner().invoke(knn.main, [*cached, "300"])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(knn.main, [*cached, "90000"])
    assert result.exit_code == 1 and "lower --sizes" in result.output


def counted(module: torch.nn.Module, *inputs: object) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(*inputs)
    return counter.get_total_flops()


def test_the_estimates_count_the_flops_that_torch_counts() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    found = counted(vit, torch.zeros(1, 3, 224, 224))
    assert scale.vit_flops(scale.Vit("tiny", 192, 12), 197) == pytest.approx(found, rel=0.03)
    head = Head([48] * 3, 32, width=64, depth=2, head_dim=64, mlp_hidden=96, level_norm=True)
    forward = counted(head, torch.zeros(500, 144), [500]) / 500
    assert scale.head_flops(144, 64, 96, 2, 32) == pytest.approx(3 * forward, rel=0.05)


def test_the_estimates_count_the_bytes_of_a_cache(project: Project) -> None:
    project.ok("prepare", "extract")
    features = Features.open("data/features.zarr")
    patches = sum(features.sizes(range(len(features.tiles))))
    channels, levels = features.channels("last"), len(features.manifest["channels"])
    stored = sum(path.stat().st_size for path in features.path.glob("*/c/*/0"))
    assert scale.cache_bytes(patches, channels, levels, 2) == pytest.approx(stored, rel=0.15)


def test_the_estimates_are_printed_for_every_data_set_and_backbone() -> None:
    result = CliRunner().invoke(scale.main, [])
    rows = json.loads(result.output.splitlines()[-1])["rows"]
    assert len(rows) == 15
    assert {row["data set"] for row in rows} == {data.name for data in scale.DATASETS}

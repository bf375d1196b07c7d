"""The measuring commands: what they print follows from what they are given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from bench import kmeans, knn, scale, seeds
from cache.features import Features
from pipeline.head.head import Head
from tests.conftest import Project, tables


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
    project.ok("prepare", "extract", "context", "graph", "train", "segment", "eval")
    expected = json.loads(Path("results/metrics.json").read_text())["kmeans"]
    (found,) = tables(kmeans.main, "--clusters", "6", "--seeds", "1")
    for matching in ("majority_iou", "hungarian"):
        scores = expected[matching]["oracle"]
        assert abs(found[matching][0][0] - scores["miou"]) < 1e-9
        assert abs(found[matching][0][1] - scores["accuracy"]) < 1e-9


def on_the_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*arguments: Any, **options: Any) -> Any:
        assert options["gpu"] is False
        return function(*arguments, **options)

    return checked


def test_the_searches_are_compared_with_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cells.EXACT_ROWS", 1000)
    for name in ("coarse_centres", "search_cells", "top"):
        monkeypatch.setattr(knn, name, on_the_cpu(getattr(knn, name)))
    tried = []
    probes = knn.Cells.probes

    def remember(cells: knn.Cells, queries: np.ndarray, exact: np.ndarray, target: float) -> int:
        tried.append(queries)
        return probes(cells, queries, exact, target)

    monkeypatch.setattr(knn.Cells, "probes", remember)
    options = ["--sizes", "900,4096", "--ks", "5", "--channels", "24", "--queries", "200"]
    (table,) = tables(knn.main, *options, "--repeats", "1", "--device", "cpu")
    rows = table["rows"]
    # Other queries than those that are timed tell how many cells to search.
    asked = np.random.default_rng(1).choice(4096, 200, replace=False)
    assert len(tried[0]) == 200 and len(np.intersect1d(tried[0], asked)) < 40
    assert [row["N"] for row in rows if row["search"] == "FAISS, exact"] == [900, 4096]
    for name in ("cells", "FAISS IVF on the CPU"):
        assert [row["N"] for row in rows if row["search"].startswith(f"{name}, ")] == [4096]
    for row in rows:
        assert row["recall"] > (0.99 if row["search"].startswith(("FAISS, e", "torch")) else 0.9)


def test_the_searched_rows_of_a_cache_are_its_tokens(project: Project) -> None:
    project.ok("prepare", "extract")
    cached = ["--features", "data/features.zarr", "--ks", "5", "--repeats", "1", "--sizes"]
    assert len(tables(knn.main, *cached, "300")[0]["rows"]) >= 2
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
    project.set("extract.shard_tokens", 9 * 48)  # a shard that is full
    project.ok("prepare", "extract")
    features = Features.open("data/features.zarr")
    patches = sum(features.sizes(range(len(features.tiles))))
    assert patches == 9 * 48
    channels, levels = features.channels("last"), len(features.manifest["channels"])
    stored = sum(path.stat().st_size for path in features.path.glob("*/c/*/0"))
    assert scale.cache_bytes(patches, channels, levels, 2) == pytest.approx(stored, rel=0.02)


def test_the_estimates_count_the_bytes_of_a_graph(project: Project) -> None:
    project.ok("prepare", "extract", "context", "graph")
    with h5py.File("data/graph.h5") as file:
        stored = sum(file[name].size * file[name].dtype.itemsize for name in datasets(file))
    # 6 images of 48 patches, in groups of 3; columns below 256 take one byte.
    assert scale.graph_bytes(6 * 48, 3 * 48, rounds=2, k=0.1) == pytest.approx(stored, rel=0.15)


def datasets(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, node: names.append(name) if hasattr(node, "size") else None)
    return names


def test_the_estimates_are_printed_for_every_data_set_and_backbone() -> None:
    (table,) = tables(scale.main)
    rows = table["rows"]
    assert len(rows) == 15
    assert {row["data set"] for row in rows} == {data.name for data in scale.DATASETS}


def test_many_gpus_are_paid_only_while_they_work() -> None:
    """Sixteen GPUs share extraction and graphs; training, on one, costs and takes the same."""
    for row in tables(scale.main)[0]["rows"]:
        one, many = (
            [float(part) for part in row[f"{name}, h"].split(" + ")]
            for name in ("1 GPU", "16 GPUs")
        )
        assert one[:2] == pytest.approx([16 * hours for hours in many[:2]], rel=0.1)
        assert one[2] == many[2]
        assert row["16 GPUs, cost"] == row["1 GPU, cost"]
        assert float(row["1 GPU, cost"]) == pytest.approx(2.5 * sum(one), rel=0.1)

"""The whole pipeline on a handful of small images, and its behaviour under kills and bad input."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cache import heads
from cache.features import Features
from cache.graphs import Graphs
from cache.index import read_index
from cache.segments import Segments
from pipeline.graph.kernel import feature_graph, pixel_edges
from pipeline.head import training
from stages import train
from stages.settings import params
from tests.conftest import Project, kill_when, metrics_of, tree_bytes

STAGES = ("prepare", "extract", "context", "graph", "train", "segment", "name", "eval", "report")
PREDICTORS = ("ours", "ours_kmeans", "kmeans")
MATCHINGS = ("majority_iou", "majority_count", "hungarian")


def test_from_photos_to_report(project: Project) -> None:
    project.ok(*STAGES)
    metrics = metrics_of()
    assert set(metrics) == set(PREDICTORS)
    for entry in metrics.values():
        assert entry["k"] == 6 and 1 <= entry["clusters_used"] <= 6
        for matching in MATCHINGS:
            for origin in ("oracle", "train"):
                assert set(entry[matching][origin]) == {"miou", "accuracy", "classes_covered"}
    # Even random weights tell these flat colours apart much better than one cluster would.
    assert metrics["kmeans"]["majority_iou"]["oracle"]["accuracy"] > 60
    with Segments("data/segments.h5") as segments:
        for row in read_index("data/index.csv"):
            found = segments.read("ours", row.id)
            assert found.shape == (row.height, row.width) and found.max() < 6
    with open("results/curve.csv", newline="") as file:
        curve = list(csv.DictReader(file))
    assert len(curve) == 3 * 2
    assert float(curve[0]["tau"]) == 1.0
    assert Path("results/report/index.html").is_file()
    assert not list(Path("data/.work").iterdir())


def test_same_seed_same_numbers_other_seed_others(project: Project) -> None:
    project.made("train")
    first = tree_bytes(Path("data/head"))
    graph = tree_bytes(Path("data/graph.h5"))
    project.ok("graph", "train")
    assert tree_bytes(Path("data/graph.h5")) == graph
    assert tree_bytes(Path("data/head")) == first
    project.set("seed", 1)
    project.ok("train")
    assert tree_bytes(Path("data/head"))["head.safetensors"] != first["head.safetensors"]


def test_without_labels_all_stages_succeed(project: Project) -> None:
    shutil.rmtree("photos/labels")
    (Path("photos") / "classes.txt").unlink()
    project.ok(*STAGES[:-2])
    result = project.run("eval")
    assert result.exit_code == 0 and "no labels" in result.output
    metrics = metrics_of()
    assert metrics["ours"]["k"] == 6
    project.ok("report")


def test_groups_hold_every_tile_once_and_about_as_many_patches(project: Project) -> None:
    project.set("extract.train.window", 64)
    project.set("extract.train.stride", 48)
    project.ok("prepare", "extract", "context", "graph")
    features = Features.open("data/features.zarr")
    tiles = features.tiles_of("train")
    with Graphs("data/graph.h5") as graphs:
        partitions = []
        for round_ in range(2):
            groups = [graphs.group(round_, g).tiles for g in range(graphs.manifest["groups"])]
            assert sorted(np.concatenate(groups)) == sorted(tiles)
            patches = [sum(features.sizes(group)) for group in groups]
            assert max(patches) <= 3 * 48 and max(patches) - min(patches) <= features.size(tiles[0])
            partitions.append([group.tolist() for group in groups])
        assert partitions[0] != partitions[1]
        tile = int(tiles[3])
        row = features.tiles[tile]
        grid = int(row["grid_h"]), int(row["grid_w"])
        expected = pixel_edges(features.rgb(tile), *grid, [(10, 2.0), (5, 0.1)])
        for found, wanted in zip(graphs.pixel_graph(tile), expected, strict=True):
            assert np.array_equal(found, wanted)


@pytest.mark.parametrize("level", ["last", "context"])
def test_group_graph_equals_brute_force(project: Project, level: str) -> None:
    project.set("graph.level", level)
    project.ok("prepare", "extract", "context", "graph")
    features = Features.open("data/features.zarr").beside("data/context.zarr")
    with Graphs("data/graph.h5") as graphs:
        group = graphs.group(1, 0)
    rows = np.concatenate([features.tokens(level, t) for t in group.tiles]).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    k = round(0.1 * len(rows))
    least = -np.sort(-cosines, axis=1)[:, k - 1 : k]
    directed = np.where(cosines >= least, np.maximum(cosines, 0), 0)
    found = feature_graph(*group.neighbours).toarray()
    # Stored as float16. Two neighbours as near as float32 tells apart may change places.
    assert (np.abs(found - (directed + directed.T) / 2) > 1e-3).mean() < 1e-4
    assert np.array_equal(found, found.T)


def test_a_graph_of_another_version_is_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.made("graph")
    monkeypatch.setattr(Graphs, "format", 5)
    project.fails("train", "data/graph.h5 has format 4", "dvc repro graph")


@pytest.mark.parametrize(
    ("stage", "out", "pattern", "slow"),
    [
        ("graph", "data/graph.h5", "*/part-group-*.h5", "write_groups"),
        ("train", "data/head", "*/checkpoint.pt", "heads.save_checkpoint"),
    ],
)
def test_killed_stages_go_on_and_end_the_same(
    project: Project, stage: str, out: str, pattern: str, slow: str
) -> None:
    project.set("train.epochs", 10)
    project.ok("prepare", "extract", "context", "graph", "train")
    path = Path(out)
    expected = tree_bytes(path)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    kill_when(stage, pattern, 1, slow)
    assert not path.exists()
    result = project.run(stage)
    assert result.exit_code == 0, result.output
    assert "resumed" in result.output
    assert tree_bytes(path) == expected


def test_as_many_rounds_are_stored_as_epochs_read(project: Project) -> None:
    project.made("graph")
    with Graphs("data/graph.h5") as graphs:
        first = graphs.group(0, 0)
        assert graphs.manifest["rounds"] == 2 and list(graphs.node("groups")) == ["0", "1"]
    project.set("train.epochs", 1)
    project.ok("graph", "train")
    with Graphs("data/graph.h5") as graphs:
        assert graphs.manifest["rounds"] == 1 and list(graphs.node("groups")) == ["0"]
        again = graphs.group(0, 0)  # a later round changes nothing of an earlier one
    assert np.array_equal(first.tiles, again.tiles)
    assert np.array_equal(first.neighbours.indices, again.neighbours.indices)
    project.set("train.epochs", 2)
    project.fails("train", "must hold 2 rounds of groups", "found 1", "dvc repro graph")


def test_k_larger_than_the_graph(project: Project) -> None:
    project.made("context")
    project.set("graph.k", 5000)
    project.fails("graph", "k = 5000 for n = 144 patches", "lower `graph.k`")


def test_more_clusters_than_patches(project: Project) -> None:
    project.made("graph")
    project.set("clusters", 1000)
    project.fails("train", "clusters (1000)", "training patches (288)", "lower `clusters`")


def test_a_graph_of_another_cache_is_refused(project: Project) -> None:
    project.made("train")
    project.set("extract.train.short_side", 80)
    project.ok("extract", "context")
    project.fails("train", "graph.h5 was made from another feature cache", "dvc repro graph")
    project.ok("graph")
    project.fails("segment", "data/head", "another", "train")


def test_damaged_hdf5_files_are_refused(project: Project) -> None:
    project.made("context")
    project.fails("train", "data/graph.h5", "eigenseg graph")
    project.ok("graph")
    whole = Path("data/graph.h5").read_bytes()
    Path("data/graph.h5").write_bytes(whole[: len(whole) // 2])
    project.fails("train", "data/graph.h5", "graph")
    with h5py.File("data/graph.h5", "w") as file:
        file.create_group("groups")
    project.fails("train", "data/graph.h5", "graph")
    Path("data/graph.h5").write_bytes(whole)
    with h5py.File("data/graph.h5", "r") as file:
        chunk = file["groups/0/0/indices"].id.get_chunk_info(0)
    spoilt = bytearray(whole)
    spoilt[chunk.byte_offset + 7] ^= 1
    Path("data/graph.h5").write_bytes(spoilt)
    project.fails("train", "data/graph.h5", "indices")


def test_nan_in_the_cache_stops_the_training(project: Project) -> None:
    import zarr

    project.made("graph")
    array = zarr.open_array("data/features.zarr/block_05", mode="r+")
    values = array[:]
    values[5] = np.nan
    array[:] = values
    project.fails("train", "block_05 has NaN or infinite values", "at tile 0")


def test_a_diverging_loss_keeps_the_last_good_checkpoint(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.made("graph")
    step, calls = training.train_step, []

    def diverging(head: torch.nn.Module, *args: object, **kwargs: object) -> dict:
        calls.append(1)
        if len(calls) == 4:  # the second step of the second epoch
            with torch.no_grad():
                next(head.parameters()).fill_(torch.nan)
        return step(head, *args, **kwargs)

    monkeypatch.setattr(training, "train_step", diverging)
    project.fails("train", "the loss must stay finite", "lower `train.lr`")
    assert not Path("data/head").exists()
    (checkpoint,) = Path("data/.work").glob("head-*/checkpoint.pt")
    state = heads.load_checkpoint(checkpoint)
    assert state and all(torch.isfinite(values).all() for values in state["head"].values())
    monkeypatch.setattr(training, "train_step", step)
    assert "resumed: 1 epochs were finished" in project.run("train").output


def test_the_start_from_kmeans_is_made_once(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.made("train")
    expected = tree_bytes(Path("data/head"))
    shutil.rmtree("data/head")

    def stop(*_: object) -> None:
        raise OSError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(train, "fit_kmeans", stop)  # after the last epoch
        project.fails("train", "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(train, "head_input", stop)
        project.ok("train")
    assert tree_bytes(Path("data/head")) == expected
    with monkeypatch.context() as patch:
        patch.setattr(train, "head_input", stop)
        project.fails("train", "stopped")


@pytest.mark.parametrize("start", ["kmeans", "discriminant"])
def test_the_first_head_is_kmeans_on_its_input(
    project: Project, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in (("train.lr", 1e-12), ("train.lr_end", 0.0), ("train.start", start)):
        project.set(key, value)
    project.ok("prepare", "extract", "context", "graph", "train")
    choices = params.load()
    features = Features.open("data/features.zarr").beside("data/context.zarr")
    rows = features.batch(["context"], features.tiles_of("train")).astype(np.float32)
    begin = train.start_of(choices.train, choices.clusters, choices.seed, gpu=False)
    shape = train.head_shape(choices.head, choices.clusters, begin, features)
    head = train.build_head(shape, choices.seed)
    given: list[tuple] = []
    monkeypatch.setattr("pipeline.head.start.start_at", lambda *found: given.append(found))
    begin.apply(head, lambda: rows)
    ((_, centres, _, *metric),) = given
    assert len(metric) == (start == "discriminant")
    cosines = (metric[0].rows(rows) if metric else rows) @ centres.T
    head.load_state_dict(load_file("data/head/head.safetensors"))
    with torch.no_grad():
        logits = head(torch.from_numpy(rows), [48] * 6)[1].numpy()
    # Few channels: the LayerNorm takes away their mean, which is not nothing.
    assert np.corrcoef(logits.ravel(), cosines.ravel())[0, 1] > 0.98
    assert (logits.argmax(axis=1) == cosines.argmax(axis=1)).mean() > 0.9
    ratio = np.linalg.norm(logits) / np.linalg.norm(cosines)
    assert ratio == pytest.approx(choices.train.start_scale, rel=0.1)


def test_more_discriminants_than_channels_are_refused_before_training(project: Project) -> None:
    project.made("graph")
    project.set("head.width", 4096)
    project.fails("train", "found 4096 for 32 channels", "lower `head.width`")
    project.set("head.width", None)
    project.set("train.discriminant.clusters", 1000)
    project.fails("train", "found 288 patches for 1000 clusters", "`train.discriminant.clusters`")


def test_a_checkpoint_of_a_head_with_other_shapes_is_refused(project: Project) -> None:
    project.made("train")
    path = Path("data/head/head.safetensors")
    state = load_file(path)
    state["norm.weight"] = state["norm.weight"][:8].clone()
    save_file(state, path)
    project.fails("segment", "data/head")


def test_alpha_and_the_choices_of_the_head_reach_the_training(project: Project) -> None:
    project.made("train")
    first = tree_bytes(Path("data/head"))["head.safetensors"]
    changes = (
        ("graph.alpha", 0.0),
        ("train.start_scale", 5.0),
        ("train.discriminant.clusters", 5),
        ("train.discriminant.runs", 2),
        ("train.start", "kmeans"),
        ("train.start", "random"),
        ("head.width", 64),
        ("head.level_norm", True),
        ("head.orthogonal", True),
        ("head.heads", 3),
        ("head.qkv_bias", False),
        ("head.last_bias", True),
        ("head.levels", ["first", "context", "last"]),
    )
    for key, value in changes:
        project.set(key, value)
        project.ok("train")
        other = tree_bytes(Path("data/head"))["head.safetensors"]
        assert other != first
        first = other

"""Batches drawn anew: the same steps as with stored graphs, other tiles in every epoch."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.features import Features
from cache.graphs import Graphs
from pipeline.graph.kernel import kernel_on_device
from pipeline.head.objective import SCALE, neural_eigenfunction_loss, normalise_columns
from pipeline.head.start import Start
from stages.running import batches
from stages.running.sample import gather
from stages.settings import params
from stages.train import build_head, head_shape
from tests.conftest import Project, kill_when, tree_bytes


@pytest.fixture
def drawn(project: Project) -> Project:
    """Six tiles of 16 patches an image, batches of 18 tiles."""
    project.set("extract.train.window", 64)
    project.set("extract.train.stride", 32)
    project.set("graph.group_patches", 18 * 16)
    project.set("graph.scope", "batch")
    project.ok("prepare", "extract", "context")
    return project


def opened(graphs: Graphs) -> batches.Batches:
    cache = Features.open("data/features.zarr").beside("data/context.zarr")
    choices = params.load()
    return batches.open_source(
        cache, graphs, choices.head.levels, choices.graph.alpha, choices.seed, gpu=False
    )


def test_the_loss_is_that_of_a_stored_graph(drawn: Project) -> None:
    drawn.set("graph.scope", "group")
    drawn.ok("graph")
    with Graphs("data/graph.h5") as graphs:
        tiles = graphs.group(1, 1).tiles
        stored = opened(graphs).load((1, 1))
    drawn.set("graph.scope", "batch")
    drawn.ok("graph")
    with Graphs("data/graph.h5") as graphs:
        source = opened(graphs)
        made = source.load(tiles)
    assert torch.equal(made.tokens, stored.tokens) and made.sizes == stored.sizes
    head = build_head(head_shape(params.load().head, 6, Start(), source.cache), 0)
    losses = []
    for batch in (stored, made):
        logits = head(batch.tokens.float(), batch.sizes)[1]
        psi = normalise_columns(torch.softmax(logits / 0.3, dim=1)) / SCALE**0.5
        losses.append(neural_eigenfunction_loss(psi, batch.kappa, 0.08)[0].item())
    assert losses[1] == pytest.approx(losses[0], abs=1e-5) and abs(losses[0]) > 0.1


def test_pixel_graphs_of_a_tile_are_made_once(
    drawn: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn.ok("graph")
    with Graphs("data/graph.h5") as graphs:
        source = opened(graphs)
        tiles = source.plan(0)[0]
        first, again = source.load(tiles), source.load(tiles)
        assert set(source.pixels) == set(tiles.tolist())
        assert torch.equal(first.kappa.to_dense(), again.kappa.to_dense())
        monkeypatch.setattr(batches, "KEPT", 0)
        bare = opened(graphs)
        assert torch.equal(bare.load(tiles).kappa.to_dense(), first.kappa.to_dense())
        assert len(bare.pixels) <= 1
        source.pixels.update(dict.fromkeys(tiles.tolist(), source.pixels[int(tiles[0])]))
        assert not torch.equal(source.load(tiles).kappa.to_dense(), first.kappa.to_dense())


def test_a_batch_for_a_gpu_has_the_kernel_of_a_batch_for_the_cpu(
    drawn: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn.ok("graph")
    with Graphs("data/graph.h5") as graphs:
        source = opened(graphs)
        tiles = source.plan(0)[0]
        expected = source.load(tiles)
        made = []

        def on_device(*arguments: Any) -> torch.Tensor:
            made.append(arguments[-1])
            return kernel_on_device(*arguments[:-1], "cpu")

        monkeypatch.setattr(batches, "choose_device", lambda _: torch.device("cuda"))
        monkeypatch.setattr(batches, "kernel_on_device", on_device)
        found = source.load(tiles)
    assert made == [torch.device("cuda")]
    assert torch.allclose(found.kappa.to_dense(), expected.kappa.to_dense(), rtol=2e-6, atol=0)


def test_every_epoch_draws_all_tiles_anew(drawn: Project) -> None:
    drawn.ok("graph")
    with Graphs("data/graph.h5") as graphs:
        source = opened(graphs)
        cache, epochs = source.cache, [source.plan(epoch) for epoch in (0, 1, 0)]
        loaded = batches.load_batches(source, range(2, 3), torch.device("cpu"), [0.0])
        assert len(list(loaded)) == 2  # the last of three epochs
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [len(cache.tiles_of("train")) // 2] * 2
        assert sorted(np.concatenate(epoch)) == sorted(cache.tiles_of("train"))
    owners = [set(cache.tiles["image"][batch].tolist()) for batch in epochs[0]]
    assert owners[0] & owners[1]  # tiles are drawn, not images
    assert not np.array_equal(epochs[0], epochs[1]) and np.array_equal(epochs[0], epochs[2])


def test_no_graph_is_stored_and_a_killed_training_ends_the_same(drawn: Project) -> None:
    assert "no graphs; training makes those of 2 new batches" in drawn.run("graph").output
    assert Path("data/graph.h5").stat().st_size < 20_000
    drawn.set("train.epochs", 10)
    drawn.ok("train")
    expected = tree_bytes(Path("data/head"))
    curve = Path("results/curve.csv").read_text()
    assert len(curve.splitlines()) == 1 + 10 * 2
    shutil.rmtree("data/head")
    kill_when("train", "*/checkpoint.pt", 1, "heads.save_checkpoint")
    result = drawn.run("train")
    assert result.exit_code == 0 and "resumed" in result.output, result.output
    assert tree_bytes(Path("data/head")) == expected
    assert Path("results/curve.csv").read_text() == curve


def test_what_the_batches_are_made_with_reaches_the_head(drawn: Project) -> None:
    drawn.ok("graph", "train")
    digests = [tree_bytes(Path("data/head"))["head.safetensors"]]
    for key, value in (("k", 0.3), ("level", "last"), ("pixel", [{"k": 3, "weight": 1.0}])):
        drawn.set(f"graph.{key}", value)
        drawn.ok("graph", "train")
        digests.append(tree_bytes(Path("data/head"))["head.safetensors"])
    assert len(set(digests)) == 4


def test_a_k_beyond_the_smallest_batch_is_refused_before_training(drawn: Project) -> None:
    cache = Features.open("data/features.zarr")
    least = sum(sorted(cache.sizes(cache.tiles_of("train")))[: len(cache.tiles_of("train")) // 2])
    drawn.set("graph.k", least)
    drawn.fails("graph", f"k = {least} for n = {least} patches", "lower `graph.k`")
    drawn.set("graph.k", least - 1)
    drawn.ok("graph")
    drawn.set("graph.other_images", True)
    drawn.fails("graph", "other_images needs scope dataset")


@pytest.mark.parametrize("threads", [1, 4])
def test_rows_are_gathered_in_their_order(threads: int) -> None:
    rng = np.random.default_rng(0)
    tiles = {number: rng.random((6, 3)).astype(np.float32) for number in range(40, 60)}
    plan = [np.flatnonzero(rng.random(6) < 0.3) for _ in tiles]
    assert any(len(rows) == 0 for rows in plan)

    def rows_of(tile: int) -> np.ndarray:
        time.sleep(0.002 * (tile % 3))  # later tiles may be read earlier
        return tiles[tile]

    found = gather([*tiles], plan, 3, rows_of, "sampling", threads)
    expected = [rows[chosen] for rows, chosen in zip(tiles.values(), plan, strict=True)]
    np.testing.assert_array_equal(found, np.concatenate(expected))

"""The commands that measure training: what they compare is the same, what they print adds up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from bench import gpu, training
from bench.project import HEADS, Setting, Size, make, open_setting
from bench.training import Online
from cache.graphs import Graphs
from tests.conftest import Project, tables

SIZE = Size("test_vit", side=96, images=2, batches=3, clusters=4, device="cpu")
TINY = [f"--{name}={value}" for name, value in SIZE._asdict().items() if name != "batches"]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """A project of three batches of two images, for the paper's head and four epochs."""
    folder = make(tmp_path_factory.mktemp("project"), SIZE)
    with Graphs(folder / "graph.h5") as graphs:
        yield open_setting(folder, graphs, "paper", epochs=4)


@pytest.mark.parametrize("name", HEADS)
def test_the_online_batch_is_the_cached_one(setting: Setting, name: str) -> None:
    setting = open_setting(setting.folder, setting.graphs, name)
    cached = setting.source().load((0, 0))
    online = Online(setting)
    tiles = setting.graphs.group(0, 0).tiles
    online.paths = [online.paths[image] for image in setting.cache.tiles["image"][tiles]]
    pixels = next(online.photos())
    found = online.batch(pixels)
    assert found.sizes == cached.sizes
    near = torch.isclose(found.tokens, cached.tokens.float(), atol=2e-2, rtol=1e-2)
    # Whitened, a component without any variance but float16's rounding has the variance of others.
    assert (~near).float().mean() <= (5e-3 if name == "default" else 0)
    # Of the very tokens that the graph stage saw; the graph file holds its cosines in float16.
    level = setting.params.graph.level
    rows = torch.from_numpy(setting.cache.batch([level], tiles)).float()
    kernel = online.kernel({level: rows}, pixels).to_dense()
    torch.testing.assert_close(kernel, cached.kappa.to_dense(), atol=1e-4, rtol=1e-3)


def test_batches_come_in_the_order_of_seed_and_epoch(setting: Setting) -> None:
    waited = [0.0]
    loaded = list(setting.batches(range(2, 4), waited))
    order = [
        int(group)
        for epoch in (2, 3)
        for group in np.random.default_rng([setting.params.seed, epoch]).permutation(3)
    ]
    assert len(loaded) == len(order) == 6
    for batch, group in zip(loaded, order, strict=True):
        expected = setting.source().load((0, group))
        assert torch.equal(batch.tokens, expected.tokens.float())
        assert torch.equal(batch.kappa.values(), expected.kappa.values())
    assert waited[0] > 0


def test_training_prints_both_heads() -> None:
    (steps,) = tables(training.main, *TINY, "--repeats", "1", "--steps", "2")
    assert [row["head"] for row in steps["rows"]] == ["default"] * 7 + ["paper"] * 7
    cached = [row for row in steps["rows"] if row["what"] == "cached step"]
    assert all(row["to the cached step"] == [1, 1, 1] for row in cached)
    assert all(0 <= row["share"] <= 1 for row in steps["rows"] if "share" in row)


def test_a_run_that_takes_too_long_is_extrapolated(setting: Setting) -> None:
    row = gpu.long_run(setting, 600, 0)
    assert row["steps"] == 1
    assert row["minutes of all steps"] == pytest.approx(row["seconds"] * 600 / 60)
    assert gpu.long_run(setting, 5, 100)["steps"] == 5


def test_the_papers_run_is_what_presets_train(setting: Setting) -> None:
    with gpu.as_presets(setting) as found:
        graph = found.params.graph
        patches = graph.group_patches
        assert (graph.scope, graph.level, graph.k) == ("batch", "last", min(256, patches // 2))
        batch = found.source().load(found.source().plan(0)[0])
        assert batch.kappa.values().numel() > graph.k * sum(batch.sizes)
        assert gpu.long_run(found, 2, 100)["steps"] == 2


def test_one_device_agrees_with_itself() -> None:
    run, agreement = tables(gpu.main, "--tiny", "--device", "cpu", "--only", "run,agreement")
    assert [row["steps"] for row in run["rows"]] == [5, 5]
    neighbours, *heads = agreement["rows"]
    assert neighbours["recall"] == 1
    assert len(heads) == 4
    assert all(row["largest difference"] == 0 for row in heads)


def test_a_part_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(training.main, "main", broken)
    result = CliRunner().invoke(gpu.main, ["--tiny", "--device", "cpu", "--only", "step,run"])
    assert result.exit_code == 1
    assert "not measured: step" in result.output and '"bench": "run"' in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured() -> None:
    result = CliRunner().invoke(gpu.main)
    assert result.exit_code == 0
    assert result.output == "no GPU: not measured\n"


def test_the_stage_tells_how_long_it_waited_but_writes_no_time(project: Project) -> None:
    project.made("graph")
    result = project.run("train")
    assert result.exit_code == 0, result.output
    assert "% of the time for data" in result.output
    header = Path("results/curve.csv").read_text().splitlines()[0]
    assert header == "step,loss,trace,penalty,clusters,tau,lr"

"""The commands that measure training: what they compare is the same, what they print adds up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from bench import gpu, pascal, training
from bench.parts import head_parts, measure_parts
from bench.project import HEADS, Setting, Size, make, open_setting
from bench.training import Online
from cache.graphs import Graphs
from stages.train import batches, build_head
from tests.conftest import Project, tables

SIZE = Size("test_vit", side=96, images=2, batches=3, clusters=4, device="cpu")
TINY = [f"--{name}={value}" for name, value in SIZE._asdict().items() if name != "batches"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """A project of three batches of two images, for the paper's head and four epochs."""
    project = make(tmp_path_factory.mktemp("project"), SIZE)
    with Graphs(project.graph) as graphs:
        yield open_setting(project, graphs, "paper", epochs=4)


@pytest.mark.parametrize("name", HEADS)
def test_the_online_batch_is_the_cached_one(setting: Setting, name: str) -> None:
    setting = open_setting(setting.project, setting.graphs, name)
    cached = setting.load(0, 0)
    online = Online(setting)
    tiles = setting.graphs.group(0, 0).tiles
    online.paths = [online.paths[image] for image in setting.features.tiles["image"][tiles]]
    pixels = next(online.photos())
    found = online.batch(pixels)
    assert found.sizes == cached.sizes
    near = torch.isclose(found.tokens, cached.tokens.float(), atol=2e-2, rtol=1e-2)
    # Whitened, a component without any variance but float16's rounding has the variance of others.
    assert (~near).float().mean() <= (5e-3 if name == "default" else 0)
    # Of the very tokens that the graph stage saw; the graph file holds its cosines in float16.
    level = setting.chosen.graph.level
    rows = torch.from_numpy(setting.features.batch([level], tiles)).float()
    kernel = online.kernel({level: rows}, pixels).to_dense()
    torch.testing.assert_close(kernel, cached.kappa.to_dense(), atol=1e-4, rtol=1e-3)


def test_batches_come_in_the_order_of_seed_and_epoch(setting: Setting) -> None:
    loaded = list(batches(setting.chosen, setting.features, setting.graphs, 2, CPU))
    order = [
        int(group)
        for epoch in (2, 3)
        for group in np.random.default_rng([setting.chosen.seed, epoch]).permutation(3)
    ]
    assert len(loaded) == len(order) == 6
    for (batch, waited), group in zip(loaded, order, strict=True):
        expected = setting.load(0, group)
        assert torch.equal(batch.tokens, expected.tokens.float())
        assert torch.equal(batch.kappa.values(), expected.kappa.values())
        assert waited >= 0


def test_the_parts_are_counted_and_leave_the_head_alone(setting: Setting) -> None:
    head = build_head(setting.chosen, setting.features).train()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    batch = setting.load(0, 0).to(CPU)
    rows = {row["part"]: row for row in measure_parts(head, batch, scale=0.01, repeats=1)}
    n, width, hidden, clusters = len(batch.tokens), head.width, 576, 4
    # A linear layer takes one product forward and two backward, of 2 FLOP for each weight and row.
    assert rows["MLP 1"]["GFLOP"] * 1e9 == 3 * 2 * n * 2 * width * hidden
    linear = 3 * 2 * n * 4 * width**2
    within = 3 * 2 * 2 * n * width * 64  # k'^T v and q' (k'^T v), head_dim 64
    assert rows["attention 2"]["GFLOP"] * 1e9 == linear + within
    edges = batch.kappa.values().numel()
    assert rows["of it, kappa Psi"]["GFLOP"] * 1e9 == 2 * edges * clusters
    counted = [row for name, row in rows.items() if name not in ("sum", "whole step")]
    counted.remove(rows["of it, kappa Psi"])
    assert rows["sum"]["s"] == pytest.approx(sum(row["s"] for row in counted))
    assert rows["sum"]["GFLOP"] == rows["whole step"]["GFLOP"] > rows["MLP 1"]["GFLOP"]
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    assert all(parameter.grad is None for parameter in head.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_the_parts_together_are_the_head(setting: Setting, name: str) -> None:
    setting = open_setting(setting.project, setting.graphs, name)
    head = build_head(setting.chosen, setting.features)
    batch = setting.load(0, 0).to(CPU)
    *_, last = head_parts(head, batch)
    torch.testing.assert_close(last.forward.run(), head(batch.tokens, batch.sizes)[1])


def test_training_prints_both_heads_and_their_parts() -> None:
    steps, parts = tables(training.main, *TINY, "--repeats", "1", "--steps", "2")
    assert [row["head"] for row in steps["rows"]] == ["default"] * 7 + ["paper"] * 7
    cached = [row for row in steps["rows"] if row["what"] == "cached step"]
    assert all(row["to the cached step"] == [1, 1, 1] for row in cached)
    assert all(0 <= row["share"] <= 1 for row in steps["rows"] if "share" in row)
    names = [row["part"] for row in parts["rows"] if row["head"] == "paper"]
    assert "level norms, projection" not in names and names[-1] == "whole step"


def test_a_run_that_takes_too_long_is_extrapolated() -> None:
    options = [*TINY, "--head", "default", "--batches", "2"]
    (table,) = tables(pascal.main, *options, "--steps", "600", "--seconds", "0")
    (row,) = table["rows"]
    assert (table["batches"], row["steps"]) == (2, 1)
    assert row["minutes of all steps"] == pytest.approx(row["seconds"] * 600 / 60)
    (table,) = tables(pascal.main, *options, "--steps", "5")
    assert table["rows"][0]["steps"] == 5


def test_one_device_agrees_with_itself(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    arguments = ["--tiny", "--device", "cpu", "--only", "agreement,pascal", "--out", str(out)]
    *shown, parts = tables(gpu.main, *arguments, "--steps", "3")
    assert shown == [json.loads(line) for line in out.read_text().splitlines()]
    agreement, run = shown
    assert (run["bench"], [row["part"] for row in parts["rows"]]) == (
        "pascal",
        ["agreement", "pascal"],
    )
    neighbours, *heads = agreement["rows"]
    assert neighbours["recall"] == 1
    assert len(heads) == 4
    assert all(row["largest difference"] == 0 for row in heads)


def test_a_part_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    @click.command(context_settings={"ignore_unknown_options": True})
    @click.argument("rest", nargs=-1)
    def broken(rest: tuple[str, ...]) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setitem(gpu.COMMANDS, "step", broken)
    out = tmp_path / "gpu.jsonl"
    arguments = ["--tiny", "--device", "cpu", "--only", "step,pascal", "--out", str(out)]
    result = CliRunner().invoke(gpu.main, arguments)
    assert result.exit_code == 1
    assert "not measured: step" in result.output
    (line,) = out.read_text().splitlines()
    assert json.loads(line)["bench"] == "pascal"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured() -> None:
    result = CliRunner().invoke(gpu.main)
    assert result.exit_code == 0
    assert result.output == "no GPU: not measured\n"


def test_the_stage_tells_how_long_it_waited_but_writes_no_time(project: Project) -> None:
    project.ok("prepare", "extract", "context", "graph")
    result = project.run("train")
    assert result.exit_code == 0, result.output
    assert "% of the time for data" in result.output
    header = Path("results/curve.csv").read_text().splitlines()[0]
    assert header == "step,loss,trace,penalty,clusters,tau,lr"

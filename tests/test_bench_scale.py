"""The measuring commands of memory, clusters and large images: what they print holds."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
import torch
import yaml

from bench import cluster, growth, segmentation
from bench.project import make_project
from stages import extract
from stages.settings.params import load
from tests.conftest import tables


def test_memory_and_seconds_are_those_of_the_process_alone(tmp_path: Path) -> None:
    ballast = bytearray(200_000_000)  # held by the process that measures
    empty = growth.cost(tmp_path, "-c", "pass")
    full = growth.cost(tmp_path, "-c", "x = b'1' * 300_000_000; print('noise')")
    assert empty.megabytes < len(ballast) / 1e6 / 2 and empty.written == 0
    assert 290 < full.megabytes - empty.megabytes < 330
    child = f"import subprocess; subprocess.run([{sys.executable!r}, '-c', 'b\"1\" * 100_000_000'])"
    assert 90 < growth.cost(tmp_path, "-c", child).megabytes - empty.megabytes < 130
    busy = "import time\nwhile time.process_time() < 1: pass\ntime.sleep(1)"
    assert 1 <= growth.cost(tmp_path, "-c", busy).seconds < 2
    (tmp_path / "data").mkdir()
    write = "open('data/x', 'wb').write(bytes(3_000_000))"
    assert growth.cost(tmp_path, "-c", write).written == 3
    with pytest.raises(click.ClickException, match="no such word"):
        growth.cost(tmp_path, "-c", "raise ValueError('no such word')")


def test_an_exponent_is_the_power_with_which_costs_grow() -> None:
    assert growth.exponent({1: 2.0, 4: 8.0, 16: 32.0}) == pytest.approx(1)
    assert growth.exponent({1: 0.5, 4: 8.0, 16: 128.0}) == pytest.approx(2)
    assert growth.exponent({64: 7.0, 256: 7.0, 1024: 7.0}) == pytest.approx(0)
    assert growth.exponent({1: 0.01, 4: 0.09}) is None and growth.exponent({1: 5.0}) is None


@pytest.mark.parametrize("clusters", [False, True])
def test_a_stage_that_grows_is_marked(monkeypatch: pytest.MonkeyPatch, clusters: bool) -> None:
    """Every stage runs once for each size, in a project of that size."""

    def taken(folder: Path, flag: str, code: str) -> growth.Cost:
        photos = len(list(folder.glob("photos/images/train/*")))
        if flag == "-c":
            return growth.Cost(50, 2, 0)
        size = load(folder / "params.yaml").clusters if clusters else photos
        much = code == "stages.graph"
        return growth.Cost(100 + (size if much else size / 10), 2 + size ** (2 if much else 1), 3)

    monkeypatch.setattr(growth, "cost", taken)
    size = ["--images", "4", "--height", "20", "--width", "30"]
    size += ["--clusters", "4", "--clusters", "16", "--clusters", "64"] if clusters else []
    memory, seconds, written = (
        {row["stage"]: row for row in table["rows"]} for table in tables(growth.main, *size)
    )
    small, large = ("K = 4", "K = 64") if clusters else ("x 1", "x 16")
    assert list(memory) == list(growth.STAGES)
    assert (memory["graph"][small], memory["graph"][large]) == (104, 164)
    assert memory["graph"][""] == "grows" and memory["graph"]["imports"] == 50
    assert memory["train"][""] == "" and memory["train"]["ratio"] == pytest.approx(
        106.4 / 100.4, abs=1e-3
    )
    assert (seconds["graph"]["exponent"], seconds["graph"][""]) == (2, "steep")
    assert (seconds["train"]["exponent"], seconds["train"][""]) == (1, "")
    assert (written["train"][small], written["train"]["exponent"]) == (3, 0)


def test_a_drawn_project_takes_settings(tmp_path: Path) -> None:
    make_project(tmp_path, 2, 1, 20, 30, ["graph.k=7", "backbones.demo.weights=w.safetensors"])
    params = load(tmp_path / "params.yaml")
    assert (params.graph.k, params.backbones["demo"].weights) == (7, "w.safetensors")
    assert params.data.train == "train"
    assert len(list(tmp_path.glob("photos/images/train/*.jpg"))) == 2


def test_the_cluster_bench_compares_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With threads in the place of a cluster; a lost worker leaves another file here."""

    @contextmanager
    def threads(*_: object) -> Iterator[str]:
        yield "threads"

    def loss(stage: str, elsewhere: Path) -> float:
        tree = yaml.safe_load(Path("params.yaml").read_text())
        assert (tree["compute"]["threads"], tree["graph"]["k"]) == (1, 5)
        cluster.run_stage(stage, "threads")
        if stage == "graph":
            with open("data/graph.h5", "ab") as file:
                file.write(b"!")
        return 1.0

    monkeypatch.setattr(extract, "SHARD_PATCHES", extract.SHARD_PATCHES)  # which it changes
    monkeypatch.setattr(cluster, "cluster", threads)
    monkeypatch.setattr(cluster, "_with_a_loss", loss)
    size = ("--images", "8", "--height", "48", "--width", "64", "--repeats", "1")
    settings = ("-S", "extract.train.short_side=48", "-S", "clusters=4", "-S", "graph.k=5")
    only = ("--stage", "context", "--stage", "graph")
    (table,) = tables(cluster.main, *size, *settings, *only)
    rows = table["rows"]
    measured = list(dict.fromkeys(row["stage"] for row in rows))
    assert measured == ["context", "graph"]
    assert [row["case"] for row in rows[:4]] == [
        "sync",
        cluster.ONE,
        "tcp, 2 workers",
        cluster.LOST,
    ]
    equal = {(row["stage"], row["case"]): row["bytes as sync"] for row in rows}
    assert not equal.pop(("graph", cluster.LOST))
    assert len(equal) == 4 * len(measured) - 1 and all(equal.values())
    one = next(row for row in rows if row["case"] == cluster.ONE)
    assert one["speed-up over 1 worker"] == [1, 1, 1]


@contextmanager
def sleeper() -> Iterator[subprocess.Popen]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_victim_is_killed_while_the_block_runs() -> None:
    with sleeper() as victim, cluster.killed(victim, lambda: True):
        assert victim.wait(10) == -signal.SIGKILL


def raising() -> bool:
    raise OSError("no such folder")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("when", [lambda: False, raising])
def test_a_run_without_a_kill_is_none_with_a_loss(when: Callable[[], bool]) -> None:
    text = r"must be killed while the stage runs, found it alive: .* \(--images\)"
    with sleeper() as victim, pytest.raises(RuntimeError, match=text), cluster.killed(victim, when):
        pass
    text = "found it ended with -15"
    with sleeper() as victim, pytest.raises(RuntimeError, match=text), cluster.killed(victim, when):
        victim.terminate()
        victim.wait()


def test_the_segmentation_bench_finds_the_pixels_of_the_direct_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segmentation, "measured", lambda case, part: 1.0)
    size = ("--height", "64", "--width", "96", "--patch", "8", "--clusters", "9")
    (table,) = tables(segmentation.main, *size, "--channels", "64", "--repeats", "1")
    rows = {row["part"]: row for row in table["rows"]}
    assert rows[segmentation.DIRECT]["pixels equal"] > 0.999
    shares = {part: row["share"][0] for part, row in rows.items() if row.get("share")}
    within = {part for part in shares if part.startswith(segmentation.WITHIN)}
    assert len(shares) == 9 and len(within) == 2
    # One run, so the shares are exact; what is within a part is not counted again.
    assert sum(shares[part] for part in set(shares) - within) == pytest.approx(1)


def test_direct_interpolation_holds_all_maps() -> None:
    case = segmentation.Case(512, 512, 16, 64, 64, torch.device("cpu"))
    maps = 64 * 512 * 512 * 4 / 1e6
    # Each in a process of its own: what this one has freed before would hide the growth.
    assert segmentation.measured(case, segmentation.DIRECT) > 0.9 * maps
    assert segmentation.measured(case, "segmentation and evaluation") < maps

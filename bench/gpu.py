"""Measurements on a GPU, in one command and in less than ten minutes."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import click
import numpy as np
import torch

from bench import extraction, training
from bench.project import Setting, Size, change_params, opened
from bench.timing import machine, show
from cache.graphs import Graphs
from pipeline.device import choose_device, use_bfloat16
from pipeline.features.whitening import unit_rows
from pipeline.graph.knn import nearest, neighbour_count, recall
from pipeline.head.training import tensor_cores, train_epoch
from stages.graph import make_graph
from stages.settings.params import load
from stages.train import schedule_of

HEADS = ("default", "paper")


class Plan(NamedTuple):
    """Sizes of the measured cases."""

    extraction: str  # arguments of bench.extraction and bench.training
    step: str
    size: Size
    steps: int  # of a run of Pascal Context's length, and of the agreement
    short: int


FULL = Plan(
    "--batch 64 --count 512 --short-side 420",
    "--repeats 10 --steps 200 --batches 8",
    Size(batches=32),
    12_500,
    20,
)
TINY = Plan(
    "--model test_vit --batch 2 --count 4 --short-side 96 --repeats 1",
    "--model test_vit --side 96 --images 2 --clusters 4 --repeats 1 --steps 2",
    Size("test_vit", side=96, images=2, batches=2, clusters=4),
    5,
    3,
)


@click.command()
@click.option("--tiny", is_flag=True, help="Everything small, to see whether it runs.")
@click.option("--device", default="cuda", type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--seconds", default=100.0, show_default=True, help="After which a long run stops.")
@click.option("--only", default="extraction,step,run,agreement", show_default=True)
def main(tiny: bool, device: str, seconds: float, only: str) -> None:
    """Measure extraction, the training step, a whole training and the agreement with the CPU.

    The images are drawn and the ViT has random weights; cache and graphs are real. A run of 12,500
    steps that was stopped is extrapolated. A part that fails is told, and the others are done.
    """
    if device == "cuda" and not torch.cuda.is_available():
        click.echo("no GPU: not measured")
        return
    plan = TINY if tiny else FULL
    size = plan.size._replace(device=device)
    parts: dict[str, Callable[[], Any]] = {
        "extraction": lambda: _command(extraction.main, plan.extraction, device),
        "step": lambda: _command(training.main, plan.step, device),
        "run": lambda: long_runs(size, plan.steps, seconds),
        "agreement": lambda: agreement(size, plan.short),
    }
    failed = [name for name in only.split(",") if not _done(parts[name])]
    if failed:
        raise click.ClickException(f"not measured: {', '.join(failed)}")


def _command(command: click.Command, arguments: str, device: str) -> None:
    command.main([*arguments.split(), "--device", device], standalone_mode=False)


def _done(part: Callable[[], Any]) -> bool:
    torch.cuda.empty_cache()
    try:
        part()
    except Exception:  # the other parts are still worth their time
        traceback.print_exc()
        return False
    return True


def long_runs(size: Size, steps: int, limit: float) -> None:
    """Train as the stage does, for so many steps: on stored groups, and on batches of presets."""
    epochs = -(-steps // size.batches)
    with (
        tensor_cores(),
        opened(size, HEADS, epochs) as settings,
        as_presets(settings["paper"]) as paper,
    ):
        cases = {"default": settings["default"], "paper, batches": paper}
        rows = [{"head": name, **long_run(one, steps, limit)} for name, one in cases.items()]
    show("run", {**machine(choose_device(size.device)), **size._asdict(), "steps": steps}, rows)


@contextmanager
def as_presets(setting: Setting) -> Iterator[Setting]:
    """Draw batches in training, with the graphs of the presets."""
    folder, patches = setting.folder, setting.params.graph.group_patches
    changed = folder / "preset.yaml"
    graph = {"scope": "batch", "level": "last", "k": min(256, patches // 2), "alpha": 0.3}
    changes = [f"graph.{key}={value}" for key, value in graph.items()]
    change_params(folder / "paper.yaml", changed, changes)
    params, path = load(changed), folder / "preset.h5"
    features, context = (str(folder / f"{name}.zarr") for name in ("features", "context"))
    make_graph(params, features, context, str(path))
    with Graphs(path) as graphs:
        yield replace(setting, params=params, graphs=graphs)


def long_run(setting: Setting, steps: int, limit: float) -> dict[str, Any]:
    """Train a fresh head for so many steps or seconds; what it took."""
    device, waited = setting.device, [0.0]
    noise = torch.Generator(device).manual_seed(setting.params.seed)
    losses: list[float] = []
    start = time.perf_counter()
    epochs = range(setting.params.train.epochs)
    with closing(setting.batches(epochs, waited)) as batches:
        for loss in _losses(setting, islice(batches, steps), device, noise):
            losses.append(loss)
            if time.perf_counter() - start > limit:
                break
        took = time.perf_counter() - start
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
    return {
        "steps": len(losses),
        "seconds": took,
        "minutes of all steps": took / len(losses) * steps / 60,
        "waited share": waited[0] / took,
        "first loss": losses[0],
        "last loss": losses[-1],
        "peak GPU GB": memory,
    }


def _losses(
    setting: Setting, batches: Any, device: torch.device, noise: torch.Generator
) -> Iterator[float]:
    """Loss of every step of a fresh head."""
    params = setting.params
    head, adam, beta = setting.trainee(device)
    schedule = schedule_of(params.train, setting.graphs.manifest["groups"])
    bfloat16 = use_bfloat16(params.train.precision, device)
    for row in train_epoch(head, adam, batches, beta, schedule, 0, noise, bfloat16):
        yield row["loss"]


def agreement(size: Size, steps: int) -> None:
    """The same cache on a CPU and on the device: the same neighbours, the same losses."""
    hardware, cpu = choose_device(size.device), torch.device("cpu")
    with opened(size, HEADS) as settings:
        rows: list[dict] = [_neighbours(settings["default"])]
        for name, setting in settings.items():
            expected = short_run(setting, cpu, steps)
            rows.append({"what": f"{name} head, float32", **_compare(expected, short_run(
                setting, hardware, steps))})  # fmt: skip
            with tensor_cores():
                fast = short_run(setting, hardware, steps)
            rows.append({"what": f"{name} head, TF32", **_compare(expected, fast)})
    show("agreement", {**machine(hardware), **size._asdict(), "steps": steps}, rows)


def short_run(setting: Setting, device: torch.device, steps: int) -> np.ndarray:
    """Loss of every step of a short training on one batch: float64 ``(steps,)``."""
    batch = setting.source().load((0, 0)).to(device)
    noise = torch.Generator().manual_seed(setting.params.seed)  # the same for all devices
    return np.array(list(_losses(setting, [batch] * steps, device, noise)))


def _neighbours(setting: Setting) -> dict[str, Any]:
    """Recall of the device's neighbours against the CPU's, over the first group."""
    tiles, graph = setting.graphs.group(0, 0).tiles, setting.params.graph
    rows = unit_rows(setting.cache.batch([graph.level], tiles).astype(np.float32))
    k = neighbour_count(graph.k, len(rows))
    exact, cosines = nearest(rows, k, gpu=False)
    device, others = nearest(rows, k, gpu=setting.device.type == "cuda")
    largest = float(np.abs(cosines - others).max())
    return {"what": "neighbours", "recall": recall(device, exact), "largest difference": largest}


def _compare(expected: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    differences: Sequence[float] = (np.abs(other - expected) / np.abs(expected)).tolist()
    return {"first step": differences[0], "largest difference": max(differences)}


if __name__ == "__main__":
    main()

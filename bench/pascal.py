"""A training run of Pascal Context's size: steps of 16 x 900 patches from a real cache."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch

from bench.project import HEADS, Size, make
from bench.timing import machine, show
from bench.training import Setting, open_setting
from cache.graphs import Graphs
from pipeline.device import choose_device
from pipeline.head import Head
from pipeline.training import Batch, optimiser, tensor_cores
from stages.train import batches, build_head, train_epoch


@click.command()
@click.option("--head", default="both", type=click.Choice([*HEADS, "both"]), help="Whose head.")
@click.option("--model", default=Size().model, show_default=True, help="timm ViT, random weights.")
@click.option("--side", default=420, show_default=True, help="Of the square images, px.")
@click.option("--images", default=16, show_default=True, help="In a batch.")
@click.option("--batches", "number", default=32, show_default=True, help="In the cache, repeated.")
@click.option("--clusters", default=256, show_default=True, help="K.")
@click.option("--steps", default=12500, show_default=True, help="Of a whole run.")
@click.option("--seconds", default=300.0, show_default=True, help="A run that takes longer stops.")
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]))
def main(
    head: str,
    model: str,
    side: int,
    images: int,
    number: int,
    clusters: int,
    steps: int,
    seconds: float,
    device: str,
) -> None:
    """Train as the stage does, for so many steps: reading ahead, kernels, copies to the device.

    The images are drawn and the ViT has random weights; the cache and the graphs are real, and
    smaller than Pascal Context's: their groups are taken again and again. A run that was stopped is
    extrapolated to all steps.
    """
    hardware = choose_device(device)
    names = list(HEADS) if head == "both" else [head]
    with tempfile.TemporaryDirectory() as folder, tensor_cores():
        project = make(Path(folder), Size(model, side, images, number, clusters, device))
        with Graphs(project.graph) as graphs:
            rows = [
                {
                    "head": name,
                    **train(
                        open_setting(project, graphs, HEADS[name], hardware, -(-steps // number)),
                        steps,
                        seconds,
                    ),
                }
                for name in names
            ]
    size = {"images": images, "side": side, "clusters": clusters, "batches": number}
    show("pascal", {**machine(hardware), **size, "steps": steps}, rows)


def train(setting: Setting, steps: int, limit: float) -> dict[str, Any]:
    """Train a fresh head for ``steps`` steps or ``limit`` seconds; what it took."""
    chosen, features, graphs, device = setting[1:]
    head = build_head(chosen, features).to(device).train()
    adam = optimiser(head, chosen.train.lr)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    losses: list[float] = []
    waited, start = 0.0, time.perf_counter()
    with closing(batches(chosen, features, graphs, 0, device)) as loaded:
        for loss, seconds in _steps(setting, head, adam, islice(loaded, steps)):
            losses.append(loss)
            waited += seconds
            if time.perf_counter() - start > limit:
                break
        took = time.perf_counter() - start
    row = {
        "steps": len(losses),
        "seconds": took,
        "ms a step": 1000 * took / len(losses),
        "minutes of all steps": took / len(losses) * steps / 60,
        "waited share": waited / took,
        "first loss": losses[0],
        "last loss": losses[-1],
    }
    if device.type == "cuda":
        row["peak GPU GB"] = torch.cuda.max_memory_allocated(device) / 1e9
    return row


def _steps(
    setting: Setting,
    head: Head,
    adam: torch.optim.Optimizer,
    loaded: Iterator[tuple[Batch, float]],
) -> Iterator[tuple[float, float]]:
    """Loss of every step and the seconds that were waited for its batch, epoch after epoch."""
    groups = setting.graphs.manifest["groups"]
    for epoch in range(setting.chosen.train.epochs):
        part = islice(loaded, groups)
        for row, waited in train_epoch(setting.chosen, part, groups, head, adam, epoch):
            yield row["loss"], waited


if __name__ == "__main__":
    main()

"""A training run of Pascal Context's size: steps of 16 x 900 patches from a real cache."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import click
import torch

from bench.project import Setting, Size, opened, project_options
from bench.timing import machine, show
from pipeline.device import choose_device
from pipeline.head.head import Head
from pipeline.head.training import Batch, optimiser, tensor_cores
from stages.train import batches, build_head, train_epoch


@click.command()
@project_options
@click.option("--batches", default=32, show_default=True, help="In the cache, repeated.")
@click.option("--steps", default=12500, show_default=True, help="Of a whole run.")
@click.option("--seconds", default=300.0, show_default=True, help="A run that takes longer stops.")
def main(size: Size, heads: list[str], steps: int, seconds: float) -> None:
    """Train as the stage does, for so many steps: reading ahead, kernels, copies to the device.

    The images are drawn and the ViT has random weights; the cache and the graphs are real, and
    smaller than Pascal Context's: their groups are taken again and again. A run that was stopped is
    extrapolated to all steps.
    """
    about = {**machine(choose_device(size.device)), **size._asdict(), "steps": steps}
    with tensor_cores(), opened(size, heads, epochs=-(-steps // size.batches)) as settings:
        rows = [{"head": name, **train(settings[name], steps, seconds)} for name in heads]
    show("pascal", about, rows)


def train(setting: Setting, steps: int, limit: float) -> dict[str, Any]:
    """Train a fresh head for ``steps`` steps or ``limit`` seconds; what it took."""
    chosen, device = setting.chosen, setting.device
    head = build_head(chosen, setting.features).to(device).train()
    adam = optimiser(head, chosen.train.lr)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    losses: list[float] = []
    waited, start = 0.0, time.perf_counter()
    with closing(batches(chosen, setting.features, setting.graphs, 0, device)) as loaded:
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

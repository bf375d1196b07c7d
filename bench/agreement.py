"""The same input on a CPU and on a GPU: the same neighbours, the same loss."""

from __future__ import annotations

import click
import numpy as np
import torch

from bench.project import Setting, Size, opened, project_options
from bench.timing import machine, show
from pipeline.device import choose_device
from pipeline.features.whitening import unit_rows
from pipeline.graph.knn import nearest, neighbour_count, recall
from pipeline.head.objective import default_beta, learning_rate, temperature
from pipeline.head.training import optimiser, tensor_cores, train_step
from stages.train import build_head


@click.command()
@project_options
@click.option("--steps", default=30, show_default=True, help="Of either training.")
def main(size: Size, heads: list[str], steps: int) -> None:
    """Search and train on the CPU and on the device, from the same cache.

    Both trainings start from the same head and draw the same Gumbel noise, on the CPU. The GPU's
    is done twice, with its matrix products in float32 and in TF32. Differences are relative to the
    CPU's loss.
    """
    hardware, cpu = choose_device(size.device), torch.device("cpu")
    with opened(size, heads) as settings:
        rows: list[dict] = [_neighbours(settings[heads[0]])]
        for name, setting in settings.items():
            expected = losses(setting, cpu, steps)
            found = losses(setting, hardware, steps)
            with tensor_cores():
                fast = losses(setting, hardware, steps)
            rows.append({"what": f"{name} head, float32", **_compare(expected, found)})
            rows.append({"what": f"{name} head, TF32", **_compare(expected, fast)})
    show("agreement", {**machine(hardware), **size._asdict(), "steps": steps}, rows)


def _neighbours(setting: Setting) -> dict:
    """Recall of the device's neighbours against the CPU's, over the first group."""
    tiles = setting.graphs.group(0, 0).tiles
    level = setting.chosen.graph.level
    tokens = [setting.features.tokens(level, int(tile)) for tile in tiles]
    rows = unit_rows(np.concatenate(tokens).astype(np.float32))
    k = neighbour_count(setting.chosen.graph.k, len(rows))
    exact, similarities = nearest(rows, k, gpu=False)
    found, others = nearest(rows, k, gpu=setting.device.type == "cuda")
    largest = float(np.abs(similarities - others).max())
    return {"what": "neighbours", "recall": recall(found, exact), "largest difference": largest}


def losses(setting: Setting, device: torch.device, steps: int) -> np.ndarray:
    """Loss of every step of a short training on one batch: float64 ``(steps,)``."""
    chosen = setting.chosen
    batch = setting.load(0, 0).to(device)
    head = build_head(chosen, setting.features).to(device).train()
    adam = optimiser(head, chosen.train.lr)
    noise = torch.Generator().manual_seed(chosen.seed)
    beta, choices = default_beta(chosen.clusters), chosen.train
    found = []
    for step in range(steps):
        adam.param_groups[0]["lr"] = learning_rate(step, steps, choices.lr, choices.lr_end)
        tau = temperature(step, steps, choices.tau_start, choices.tau_end)
        values = train_step(
            head, adam, batch, tau=tau, beta=beta, scale=choices.scale, generator=noise
        )
        found.append(values["loss"])
    return np.array(found)


def _compare(expected: np.ndarray, found: np.ndarray) -> dict:
    differences = np.abs(found - expected) / np.abs(expected)
    return {
        "first step": float(differences[0]),
        "largest difference": float(differences.max()),
        "first loss": float(expected[0]),
        "last loss": float(expected[-1]),
    }


if __name__ == "__main__":
    main()

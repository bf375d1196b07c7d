"""A supervised linear probe on cached levels: how much about the classes the tokens hold."""

from __future__ import annotations

import json

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.scoring import Labelled, cached, count_table, labelled
from cache.features import Features
from cache.labels import IGNORE, read_labels
from pipeline.evaluation import confusion, scores
from pipeline.maps.upsampling import upsample_argmax
from stages import params
from stages.progress import track


@click.command()
@click.option("--level", default="last", help="Level, also `context`, or several, by commas.")
@click.option("--epochs", default=20, show_default=True, help="Passes over the training patches.")
@click.option("--seed", default=0, show_default=True, help="Of weights and order.")
def main(level: str, epochs: int, seed: int) -> None:
    """Train a linear classifier on the training split's LABELS and score the evaluation split.

    Not unsupervised: an upper reference. A patch's class is that of the pixel at its centre; the
    logits are interpolated to full resolution before the argmax. Needs a cache of whole images.
    """
    chosen = params.load()
    features = cached()
    classes, _ = read_labels("data/labels.csv")
    levels = level.split(",")
    tokens, targets = _training_set(chosen, features, levels)
    mean, std = tokens.mean(0), tokens.std(0) + 1e-6
    probe = fit((tokens - mean) / std, targets, len(classes), epochs=epochs, seed=seed)

    def predict(item: Labelled) -> np.ndarray:
        with torch.inference_mode():
            logits = probe((torch.from_numpy(item.tokens).float() - mean) / std)
        return upsample_argmax(logits.T.reshape(-1, *item.grid), *item.label.shape)

    items = labelled(chosen, features, levels, chosen.data.eval)
    table = count_table(items, predict, len(classes), len(classes))
    found = scores(confusion(table, np.arange(len(classes))))
    click.echo(f"linear probe on {level}: {found.miou:.1f} / {found.accuracy:.1f}")
    setting = {"level": level, "epochs": epochs, "seed": seed}
    click.echo(json.dumps({**setting, "miou": found.miou, "accuracy": found.accuracy}))


def _training_set(
    chosen: params.Params, features: Features, levels: list[str]
) -> tuple[Tensor, Tensor]:
    """Tokens float32 ``(n, C)`` and classes int64 ``(n,)`` of the labelled training patches."""
    tokens, targets = [], []
    for item in labelled(chosen, features, levels, chosen.data.train):
        rows, columns = (
            ((np.arange(n) + 0.5) * side / n).astype(int)
            for n, side in zip(item.grid, item.label.shape, strict=True)
        )
        centre = item.label[np.ix_(rows, columns)].ravel()
        tokens.append(item.tokens[centre != IGNORE])
        targets.append(centre[centre != IGNORE])
    joined = torch.from_numpy(np.concatenate(tokens)).float()
    return joined, torch.from_numpy(np.concatenate(targets).astype(np.int64))


def fit(tokens: Tensor, targets: Tensor, classes: int, *, epochs: int, seed: int) -> nn.Linear:
    """Cross-entropy with AdamW, batches of 4096 patches, learning rate 1e-2 by a cosine to 0.

    Args:
        tokens: standardised, float32 ``(n, C)``.
        targets: int64 ``(n,)`` in ``0..classes-1``.
    """
    generator = torch.Generator().manual_seed(seed)
    probe = nn.Linear(tokens.shape[1], classes)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    adam = torch.optim.AdamW(probe.parameters(), lr=1e-2, weight_decay=1e-3)
    steps = epochs * len(range(0, len(tokens), 4096))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in track(range(epochs), "linear probe", unit="epoch"):
        for rows in torch.randperm(len(tokens), generator=generator).split(4096):
            adam.zero_grad()
            F.cross_entropy(probe(tokens[rows]), targets[rows]).backward()
            adam.step()
            schedule.step()
    return probe.eval()


if __name__ == "__main__":
    main()

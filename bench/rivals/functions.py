"""Eigenfunctions as a small network of a patch's token, trained on groups of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bench.rivals.dsm import Picture
from pipeline.features.whitening import unit_rows
from pipeline.graph.kernel import block_diagonal, feature_graph, kernel, pixel_edges, to_torch
from pipeline.graph.knn import nearest, neighbour_count
from pipeline.head import kmeans
from stages.running.progress import track

HIDDEN = 256  # units of the network
RATE = 1e-3  # of Adam, by a cosine to 0


class Objective(Protocol):
    """A loss of functions ``(B, m)`` and a kernel ``(B, B)``."""

    def __call__(self, psi: Tensor, kappa: Tensor, /) -> Tensor: ...

    def whitening(self, psi: Tensor, /) -> Tensor:
        """The matrix ``(m, m)`` that turns what the network gives into the eigenfunctions."""
        ...


class Group(NamedTuple):
    """Tokens float32 ``(n, C)`` of some images and the kernel ``(n, n)`` over them."""

    tokens: Tensor
    kappa: Tensor


def group_of(
    pictures: Sequence[Picture],
    k: int | float,
    settings: Sequence[tuple[int, float]],
    alpha: float,
) -> Group:
    """Unit tokens and the kernel of some images, as the head sees them (Eq. 2-4).

    Args:
        k: neighbours, a count or a fraction of the patches.
        settings: neighbours and distance weight of each pixel graph.
        alpha: weight of the pixel graph.
    """
    rows = unit_rows(np.concatenate([picture.tokens for picture in pictures]))
    graph = feature_graph(*nearest(rows, neighbour_count(k, len(rows)), gpu=False))
    pixels = block_diagonal([pixel_edges(p.rgb, *p.grid, settings) for p in pictures])
    return Group(scaled(rows), to_torch(kernel(graph, pixels, alpha), "cpu"))


def scaled(rows: np.ndarray) -> Tensor:
    """Unit rows ``(n, C)`` at length sqrt(C), which a network likes."""
    return torch.from_numpy(rows) * rows.shape[1] ** 0.5


def network(channels: int, functions: int) -> nn.Module:
    """Tokens ``(n, channels)`` to functions ``(n, functions)``; drawn from the global generator."""
    return nn.Sequential(
        nn.Linear(channels, HIDDEN), nn.GELU(), nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, functions)
    )


def train(model: nn.Module, groups: Sequence[Group], objective: Objective, epochs: int,
          seed: int, rate: float = RATE) -> list[float]:  # fmt: skip
    """Take one step for each group, in another order in every epoch; the loss of each step."""
    generator = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs * len(groups))
    losses = []
    for _ in track(range(epochs), "eigenfunctions", unit="epoch"):
        for number in torch.randperm(len(groups), generator=generator).tolist():
            group = groups[number]
            loss = objective(model(group.tokens), group.kappa)
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
            losses.append(loss.item())
    return losses


def fit(
    groups: Sequence[Group], clusters: int, functions: int, objective: Objective, epochs: int,
    seed: int,
) -> Callable[[np.ndarray], np.ndarray]:  # fmt: skip
    """Train the functions, then K-means on them; rows ``(n, C)`` to scores ``(n, K)``.

    The objective's whitening is that of all training patches, on which each function has a root
    mean square of 1.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(groups[0].tokens.shape[1], functions)
    train(model, groups, objective, epochs, seed)

    @torch.inference_mode()
    def values(rows: np.ndarray) -> np.ndarray:
        return model(scaled(unit_rows(rows))).numpy()

    with torch.inference_mode():
        psi = torch.cat([model(group.tokens) for group in groups])
        whitening = (objective.whitening(psi) * len(psi) ** 0.5).numpy()
    fitted = kmeans.fit(psi.numpy() @ whitening, clusters, spherical=True, whiten=None, seed=seed)
    return lambda rows: kmeans.scores(fitted, values(rows) @ whitening)

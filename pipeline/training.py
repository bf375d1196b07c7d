"""One optimisation step of the head under the kernel of one group of images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.head import Head
from pipeline.objective import gumbel_softmax, neural_eigenfunction_loss, normalise_columns


class Diverged(ArithmeticError):  # noqa: N818 - names what happened, as StopIteration does
    """The loss is no longer finite; the parameters are those from before the step."""


class Batch(NamedTuple):
    """The patches of one group of images, tile after tile, and the kernel over them."""

    tokens: Tensor  # float32 (N, C), the levels side by side
    sizes: list[int]  # patches of each tile, N in all
    kappa: Tensor  # sparse CSR float32 (N, N), in the same order


def optimiser(head: Head, lr: float) -> torch.optim.Optimizer:
    """Return the method's optimiser: Adam without weight decay."""
    return torch.optim.Adam(head.parameters(), lr=lr)


def train_step(
    head: Head,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    *,
    tau: float,
    beta: float,
    scale: float,
    generator: torch.Generator,
) -> dict[str, float]:
    """Take one step on the objective (Eq. 5-7) of quantised eigenfunctions.

    tau : Gumbel-softmax temperature; beta : penalty weight; scale : t of the batch normalisation;
    generator : source of the Gumbel noise, on the device of the batch.

    Returns loss, trace and penalty of the step and `clusters`, the number of distinct argmax
    clusters in the batch. Raises Diverged, before anything is changed, on a non-finite loss.
    """
    _, logits = head(batch.tokens, batch.sizes)
    psi = normalise_columns(gumbel_softmax(logits, tau, generator), scale)
    loss, trace, penalty = neural_eigenfunction_loss(psi, batch.kappa, beta)
    if not torch.isfinite(loss):
        raise Diverged(
            f"the loss must stay finite, found {loss.item()} at temperature {tau:.4g}: "
            "lower `train.lr`, or check the cached features for NaN and infinity"
        )
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return {
        "loss": loss.item(),
        "trace": trace.item(),
        "penalty": penalty.item(),
        "clusters": float(logits.argmax(dim=1).unique().numel()),
    }

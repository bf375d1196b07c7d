"""The neural eigenfunction objective (Eq. 5-7), its quantisation and its normalisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETA_AT_256 = 0.08  # the paper's beta at K = 256; it uses 0.04 at K = 512
SCALE = 0.01  # the program's t: normalised eigenfunctions are multiplied by its square root


def default_beta(clusters: int) -> float:
    """Give the paper's weight of the penalty for K = ``clusters``: 0.08 * 256 / K."""
    return BETA_AT_256 * 256 / clusters


def gumbel_softmax(logits: Tensor, tau: float, generator: torch.Generator) -> Tensor:
    """Draw soft cluster assignments softmax((logits + Gumbel noise) / tau), no straight-through.

    Args:
        logits: ``(B, K)``.
        generator: of the noise, drawn on its device, so that it is the same for all devices.

    Returns:
        ``(B, K)``, rows sum to 1.
    """
    drawn = torch.empty(logits.shape, dtype=logits.dtype, device=generator.device)
    exponential = drawn.exponential_(generator=generator).to(logits.device)
    # An exact 0 is a rare draw of some devices; its infinite noise would make the row NaN.
    noise = -exponential.clamp_min(torch.finfo(logits.dtype).tiny).log()
    return torch.softmax((logits + noise) / tau, dim=1)


def normalise_columns(psi: Tensor) -> Tensor:
    """Normalise every column j over the batch: sqrt(SCALE) * psi_j / max(||psi_j||, 1).

    The gradient passes through the norm. The floor of 1 keeps columns small that hold less than
    one patch.

    Args:
        psi: ``(B, K)``, rows are the patches of the batch.
    """
    norms = torch.linalg.vector_norm(psi, dim=0).clamp_min(1.0)
    return psi * (math.sqrt(SCALE) / norms)


def neural_eigenfunction_loss(
    psi: Tensor, kappa: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the negated objective of Eq. 5-7, divided by K, and its two sums.

    loss = -(trace - beta * penalty) / K, with trace = sum_j R_jj, R = Psi^T kappa Psi and
    penalty = sum_{i<j} Rhat_ij^2, Rhat = stopgrad(Psi)^T kappa Psi.

    Args:
        psi: ``(B, K)``, normalised columns.
        kappa: sparse or dense ``(B, B)``, symmetric, without gradient.

    Returns:
        Scalars (loss, trace, penalty); the last two are detached.
    """
    # kappa is symmetric: one product P = kappa Psi, outside the gradient, serves both terms.
    with torch.no_grad():
        product = kappa @ psi
    # Value <Psi, P> and gradient 2 P: what differentiating both factors of Psi^T kappa Psi gives.
    trace = ((2 * psi - psi.detach()) * product).sum()
    penalty = torch.triu(product.T @ psi, diagonal=1).square().sum()
    loss = -(trace - beta * penalty) / psi.shape[1]
    return loss, trace.detach(), penalty.detach()

"""What training minimises: the neural eigenfunction objective (Eq. 5-7), or one on pairs."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

BETA_AT_256 = 0.08  # the paper's beta at K = 256; it uses 0.04 at K = 512
SCALE = 0.01  # the program's t: normalised eigenfunctions are multiplied by its square root
TEACHER = 0.99  # momentum of the teacher's weights
MARGINAL = 0.9  # momentum of the share of each cluster


def default_beta(clusters: int) -> float:
    """The paper's penalty weight beta for K = ``clusters``: 0.08 * 256 / K."""
    return BETA_AT_256 * 256 / clusters


def gumbel_softmax(logits: Tensor, tau: float, generator: torch.Generator) -> Tensor:
    """Draw soft cluster assignments softmax((logits + Gumbel noise) / tau), no straight-through.

    Args:
        logits: ``(B, K)``.
        generator: source of the noise, which is drawn on its device: one generator gives the same
            noise wherever the logits are.

    Returns:
        ``(B, K)``, rows sum to 1.
    """
    drawn = torch.empty(logits.shape, dtype=logits.dtype, device=generator.device)
    exponential = drawn.exponential_(generator=generator).to(logits.device)
    # An exact 0 is a rare draw of some devices; its infinite noise would make the row NaN.
    noise = -exponential.clamp_min(torch.finfo(logits.dtype).tiny).log()
    return torch.softmax((logits + noise) / tau, dim=1)


def normalise_columns(psi: Tensor, scale: float = SCALE) -> Tensor:
    """L2 batch normalisation: sqrt(scale) * psi_j / max(||psi_j||, 1) for every column j.

    The gradient passes through the norm. The floor of 1 leaves columns that hold less than one
    patch small.

    Args:
        psi: ``(B, K)``, rows are the patches of the batch.
        scale: the method's t.
    """
    norms = torch.linalg.vector_norm(psi, dim=0).clamp_min(1.0)
    return psi * (math.sqrt(scale) / norms)


def neural_eigenfunction_loss(
    psi: Tensor, kappa: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The negated objective of Eq. 5-7 over K, and its two sums.

    loss = -(trace - beta * penalty) / K, with trace = sum_j R_jj, R = Psi^T kappa Psi and
    penalty = sum_{i<j} Rhat_ij^2, Rhat = stopgrad(Psi)^T kappa Psi.

    Args:
        psi: ``(B, K)``, normalised columns.
        kappa: sparse or dense ``(B, B)``, symmetric, without gradient.

    Returns:
        Scalars (loss, trace, penalty); the last two are detached.
    """
    # kappa is symmetric, so one product P = kappa Psi, outside the gradient, serves both terms.
    with torch.no_grad():
        product = kappa @ psi
    # Value <Psi, P> and gradient 2 P: what differentiating both factors of Psi^T kappa Psi gives.
    trace = ((2 * psi - psi.detach()) * product).sum()
    penalty = torch.triu(product.T @ psi, diagonal=1).square().sum()
    loss = -(trace - beta * penalty) / psi.shape[1]
    return loss, trace.detach(), penalty.detach()


def pointwise_information_loss(
    student: Tensor, teacher: Tensor, marginal: Tensor, power: float
) -> Tensor:
    """The negated pointwise mutual information of the assignments of pairs (u, v).

    loss = - mean log sum_c (q_s(c|u) q_t(c|v))^power / qbar(c): Adaloglou et al., "Exploring the
    limits of deep image clustering using pretrained models", BMVC 2023.

    Args:
        student: log q_s of the first end of every pair, ``(pairs, K)``.
        teacher: log q_t of the second, ``(pairs, K)``, without gradient.
        marginal: qbar, the share of each cluster, ``(K,)``.
        power: below 1 it keeps pairs that agree already from being pushed on.
    """
    return -torch.logsumexp(power * (student + teacher) - marginal.log(), dim=1).mean()


def draw_neighbours(kappa: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a neighbour of every patch, in proportion to the weights of its edges.

    Args:
        kappa: sparse CSR ``(B, B)``, no weight below 0.
        generator: of uniform numbers, drawn on its device.

    Returns:
        int64 ``(B,)``; a patch without an edge is its own neighbour.
    """
    ends = torch.nn.functional.pad(kappa.values().double().cumsum(0), (1, 0))
    first, last = ends[kappa.crow_indices()[:-1]], ends[kappa.crow_indices()[1:]]
    at = torch.rand(len(first), generator=generator, device=generator.device, dtype=torch.float64)
    edges = torch.searchsorted(ends, first + at.to(ends.device) * (last - first), right=True) - 1
    # Rounding must not lead from the last edge of a patch to the first of the next.
    edges = torch.minimum(edges, kappa.crow_indices()[1:] - 1).clamp_min(0)
    own = torch.arange(len(first), device=ends.device)
    return torch.where(last > first, kappa.col_indices()[edges].long(), own)


class NeuralEF(nn.Module):
    """The paper's objective (Eq. 5-7) of quantised eigenfunctions; it has no state.

    Args:
        beta: weight of the penalty.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(
        self, logits: Tensor, tokens: Tensor, sizes: list[int], kappa: Tensor, tau: float,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:  # fmt: skip
        """``loss``, ``trace`` and ``penalty`` of the logits ``(B, K)`` of a batch, scalars.

        Args:
            tokens, sizes: the batch's, not looked at.
            kappa: its kernel ``(B, B)``.
            tau: temperature of the Gumbel-softmax.
            generator: of its noise.
        """
        psi = normalise_columns(gumbel_softmax(logits, tau, generator))
        parts = neural_eigenfunction_loss(psi, kappa, self.beta)
        return dict(zip(("loss", "trace", "penalty"), parts, strict=True))

    def follow(self, head: nn.Module) -> None:
        """Nothing follows the head after a step."""


class PointwiseInformation(nn.Module):
    """Pointwise mutual information of every patch and a neighbour drawn from the kernel's edges.

    Its state is the teacher, an exponential average of the head, and the share of each cluster
    among what the teacher says.

    Args:
        head: the head at its start.
        power: see `pointwise_information_loss`.
    """

    marginal: Tensor

    def __init__(self, head: nn.Module, clusters: int, power: float) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(head).requires_grad_(False)
        self.power = power
        device = next(head.parameters()).device
        self.register_buffer("marginal", torch.zeros(clusters, device=device))

    def forward(
        self, logits: Tensor, tokens: Tensor, sizes: list[int], kappa: Tensor, tau: float,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:  # fmt: skip
        """``loss``, and ``agree``, the share of pairs in one cluster; scalars.

        The arguments are those of `NeuralEF.forward`; there is no noise, so tau is not looked at.
        """
        neighbours = draw_neighbours(kappa, generator)
        with torch.no_grad():
            teacher = torch.log_softmax(self.teacher(tokens, sizes)[1], dim=1)
            share = teacher.exp().mean(dim=0)
            seen = MARGINAL if bool(self.marginal.any()) else 0.0
            self.marginal.mul_(seen).add_(share, alpha=1 - seen)
            clusters = logits.argmax(dim=1)
            agree = (clusters == clusters[neighbours]).float().mean()
        student = torch.log_softmax(logits, dim=1)
        # Each patch stands once on the side that has a gradient: summing up gradients of rows that
        # were drawn several times would depend on the order in which threads add.
        loss = pointwise_information_loss(student, teacher[neighbours], self.marginal, self.power)
        return {"loss": loss, "agree": agree}

    @torch.no_grad()
    def follow(self, head: nn.Module) -> None:
        """Let the teacher follow the head by one step."""
        for own, new in zip(self.teacher.parameters(), head.parameters(), strict=True):
            own.lerp_(new, 1 - TEACHER)


Objective = NeuralEF | PointwiseInformation

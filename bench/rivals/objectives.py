"""Objectives whose optimum are the ordered eigenfunctions of a kernel, without quantisation."""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 1e-6  # under eigenvalues and on the diagonal of a covariance, both near 1


class NeuralEF:
    """Deng, Shi, Zhu, "NeuralEF", ICML 2022; of L2 batch normalisation there is one batch's."""

    def __call__(self, psi: Tensor, kappa: Tensor) -> Tensor:
        """-(sum_j R_jj - sum_{i<j} Rhat_ij^2 / R_ii) over m, columns at length 1.

        Args:
            psi: ``(B, m)``, what the network gives.
            kappa: symmetric ``(B, B)``, sparse or dense, without gradient.
        """
        psi = psi @ self.whitening(psi)
        with torch.no_grad():
            product = kappa @ psi  # kappa is symmetric, so it serves both terms
            values = (psi * product).sum(dim=0).clamp_min(FLOOR)
        trace = ((2 * psi - psi.detach()) * product).sum()
        penalty = (torch.triu(product.T @ psi, diagonal=1).square() / values[:, None]).sum()
        return -(trace - penalty) / psi.shape[1]

    @staticmethod
    def whitening(psi: Tensor) -> Tensor:
        """Return the factor ``(m, m)`` of ``psi`` that gives its columns length 1."""
        return torch.diag(1 / torch.linalg.vector_norm(psi, dim=0).clamp_min(FLOOR))


class Spin:
    """Pfau et al., "Spectral Inference Networks", ICLR 2019: the masked gradient.

    The covariance is a moving average over batches. The program's average of its derivative is
    left out: it needs one for every parameter.

    Args:
        decay: of the average; 0 takes the batch alone.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.covariance: Tensor | None = None

    def __call__(self, psi: Tensor, kappa: Tensor) -> Tensor:
        """-tr(Sigma^-1 Pi) / m, the mean of the eigenvalues, with the masked gradient.

        Sigma = psi^T psi / B, Pi = psi^T kappa psi / B, L the Cholesky factor of Sigma, Lambda =
        L^-1 Pi L^-T. By psi the gradient of the trace, where no function is moved by those after
        it, is 2 / B (kappa psi L^-T diag(L)^-1 - psi L^-T triu(Lambda diag(L)^-1)).
        """
        n, m = psi.shape
        with torch.no_grad():
            still, product = psi.detach(), kappa @ psi
            sigma, pi = still.T @ still / n, still.T @ product / n
            former = sigma if self.covariance is None else self.covariance
            self.covariance = self.decay * former + (1 - self.decay) * sigma
            inverse = inverse_factor(self.covariance)
            diagonal = torch.diag(inverse.diagonal())
            matrix = inverse @ pi @ inverse.T
            gradient = product @ inverse.T @ diagonal
            gradient -= still @ inverse.T @ torch.triu(matrix @ diagonal)
        moved = (2 / n * gradient * psi).sum()
        return -(moved - moved.detach() + matrix.trace()) / m

    @staticmethod
    def whitening(psi: Tensor) -> Tensor:
        """Return the factor ``(m, m)`` of ``psi`` that makes its columns orthonormal in order.

        The network's columns only span the eigenfunctions; these are L^-1 psi.
        """
        return inverse_factor(psi.T @ psi).T


def inverse_factor(covariance: Tensor) -> Tensor:
    """L^-1 ``(m, m)`` of a covariance L L^T, with a small ridge."""
    ridge = torch.diag(FLOOR * covariance.diagonal())
    return torch.linalg.inv(torch.linalg.cholesky(covariance + ridge))

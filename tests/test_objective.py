from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from scipy.sparse.linalg import eigsh
from torch import Tensor

from pipeline.graph.kernel import (
    block_diagonal,
    feature_graph,
    kernel,
    normalise,
    pixel_edges,
    to_torch,
)
from pipeline.graph.knn import nearest
from pipeline.head.head import Head, initialise
from pipeline.head.objective import (
    SCALE,
    default_beta,
    gumbel_softmax,
    neural_eigenfunction_loss,
    normalise_columns,
)
from pipeline.head.training import Schedule


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_kernel(n: int, k: int) -> tuple[Tensor, np.ndarray]:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n, 4)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    graph = feature_graph(*nearest(features, k))
    rgb = rng.random((n, 3), dtype=np.float32)
    pixels = block_diagonal([pixel_edges(rgb, 1, n, [(3, 2.0)])])
    kappa = kernel(graph, pixels, 0.3).astype(np.float64)
    return to_torch(kappa, "cpu"), kappa.toarray()


def eq_5_to_7(psi: Tensor, kappa: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """The equations term by term, gradients left to autograd."""
    clusters = psi.shape[1]
    trace = psi.new_zeros(())
    penalty = psi.new_zeros(())
    for j in range(clusters):
        trace = trace + psi[:, j] @ kappa @ psi[:, j]
        for i in range(j):
            penalty = penalty + (psi[:, i].detach() @ kappa @ psi[:, j]) ** 2
    return -(trace - beta * penalty) / clusters, trace, penalty


def test_value_and_gradient_are_eq_5_to_7() -> None:
    sparse, dense = random_kernel(40, 7)
    psi = torch.randn(40, 6, generator=generator(), dtype=torch.float64, requires_grad=True)
    for found, expected in zip(
        neural_eigenfunction_loss(psi, sparse, 0.3),
        eq_5_to_7(psi, torch.from_numpy(dense), 0.3),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, check_layout=False)
    (gradient,) = torch.autograd.grad(neural_eigenfunction_loss(psi, sparse, 0.3)[0], psi)
    (expected,) = torch.autograd.grad(eq_5_to_7(psi, torch.from_numpy(dense), 0.3)[0], psi)
    torch.testing.assert_close(gradient, expected)


def test_the_penalty_moves_later_functions_only() -> None:
    sparse, dense = random_kernel(40, 7)
    psi = torch.randn(40, 4, generator=generator(), dtype=torch.float64, requires_grad=True)
    (with_penalty,) = torch.autograd.grad(neural_eigenfunction_loss(psi, sparse, 5.0)[0], psi)
    (without,) = torch.autograd.grad(neural_eigenfunction_loss(psi, sparse, 0.0)[0], psi)
    torch.testing.assert_close(with_penalty[:, 0], without[:, 0])
    assert all((with_penalty - without)[:, j].abs().max() > 1e-2 for j in (1, 2, 3))
    torch.testing.assert_close(without, -2 * torch.from_numpy(dense) @ psi.detach() / 4)


def test_normalise_columns_and_its_gradient() -> None:
    psi = torch.randn(30, 4, generator=generator(), dtype=torch.float64)
    psi[:, 2] *= 0.5 / psi[:, 2].norm()  # below the floor: only scaled
    psi[:, 3] = 0
    before = psi.clone()
    result = normalise_columns(psi)
    expected = torch.tensor([0.1, 0.1, 0.05, 0.0], dtype=torch.float64)
    torch.testing.assert_close(result.norm(dim=0), expected)
    torch.testing.assert_close(result[:, 2], 0.1 * psi[:, 2])
    assert torch.equal(psi, before)
    weights = torch.randn(30, 4, generator=generator(1), dtype=torch.float64)
    torch.autograd.gradcheck(lambda x: (normalise_columns(x) * weights).sum(), psi.requires_grad_())


def test_gumbel_softmax_samples_the_categorical_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(20_000, 3)
    soft = gumbel_softmax(logits, 0.5, generator())
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(20_000))
    assert (soft.max(dim=1).values < 0.999).float().mean() > 0.5  # soft, not one-hot
    shares = soft.argmax(dim=1).bincount() / 20_000
    torch.testing.assert_close(shares, torch.softmax(logits[0], dim=0), atol=0.01, rtol=0)
    sharp = gumbel_softmax(logits, 0.05, generator())
    assert sharp.max(dim=1).values.mean() > soft.max(dim=1).values.mean()


def test_gumbel_softmax_follows_its_generator_alone() -> None:
    logits = torch.randn(10, 4, generator=generator())
    torch.manual_seed(1)
    first = gumbel_softmax(logits, 1.0, generator(5))
    torch.manual_seed(2)
    assert torch.equal(first, gumbel_softmax(logits, 1.0, generator(5)))
    assert not torch.equal(first, gumbel_softmax(logits, 1.0, generator(6)))


@pytest.mark.parametrize("which", [0, 1], ids=["lr", "tau"])
def test_schedules_are_half_cosines(which: int) -> None:
    ends = (
        {"lr": (1.0, 0.3), "tau": (5.0, 7.0)} if which == 0 else {"lr": (5, 7), "tau": (1.0, 0.3)}
    )
    schedule = Schedule(40, *ends["lr"], *ends["tau"])
    values = [schedule.at(step)[which] for step in range(41)]
    assert values[0] == pytest.approx(1.0)
    assert values[20] == pytest.approx(0.65)
    assert values[40] == pytest.approx(0.3)
    assert values[10] == pytest.approx(0.3 + 0.7 * (1 + math.sqrt(0.5)) / 2)
    assert all(a > b for a, b in pairwise(values))


def test_default_beta_is_the_papers() -> None:
    assert default_beta(256) == pytest.approx(0.08)
    assert default_beta(512) == pytest.approx(0.04)


FUNCTIONS = 5


def uneven_circle() -> tuple[Tensor, Tensor, np.ndarray]:
    """A graph with known answer: coordinates (200, 2), kernel (200, 200), top eigenvectors.

    Each of 200 points on a circle joins its 60 nearest. Were the points evenly spaced, sines and
    cosines would share their eigenvalues in pairs; uneven spacing makes every eigenvalue simple.
    """
    even = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    angle = even + 0.5 * np.sin(even) + 0.15 * np.cos(2 * even)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    graph = normalise(feature_graph(*nearest(circle, 60)))
    values, vectors = eigsh(graph.astype(np.float64), k=FUNCTIONS)
    top = vectors[:, np.argsort(-values)]
    return torch.from_numpy(circle), to_torch(graph, "cpu"), top


def maximise(function, parameters, kappa: Tensor, lr: float, beta: float, steps: int) -> np.ndarray:
    """Train continuous eigenfunctions (no quantisation); return them, (200, FUNCTIONS)."""
    adam = torch.optim.Adam(parameters, lr=lr)
    for step in range(steps):
        adam.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        unit = normalise_columns(function()) / SCALE**0.5
        loss, _, _ = neural_eigenfunction_loss(unit, kappa, beta)
        adam.zero_grad()
        loss.backward()
        adam.step()
    psi = function().detach().double()
    return (psi / psi.norm(dim=0)).numpy()


def test_free_functions_become_the_eigenvectors_in_order() -> None:
    _, kappa, top = uneven_circle()
    table = torch.randn(200, FUNCTIONS, generator=generator()).requires_grad_()
    psi = maximise(lambda: table, [table], kappa, lr=0.05, beta=1.0, steps=1000)
    assert subspace_angles(psi, top).max() < 0.02
    cosines = np.abs((psi * top).sum(axis=0))
    assert (cosines[:3] > 0.999).all()  # eigenvalues 1, .91, .83; the next two are .56 and .53
    assert (cosines > 0.95).all()


@pytest.mark.parametrize("beta", [2.0, 0.0])
def test_the_head_reaches_the_leading_eigenspace(beta: float) -> None:
    tokens, kappa, top = uneven_circle()
    head = Head([2], FUNCTIONS, 32, 1, 16, 64, level_norm=False)
    initialise(head, generator())
    psi = maximise(
        lambda: head(tokens, [200])[1], list(head.parameters()), kappa, 5e-3, beta, steps=600
    )
    if beta:
        assert subspace_angles(psi, top).max() < 0.1
        assert (np.abs((psi * top).sum(axis=0)) > 0.98).all()
    else:  # without the penalty all functions are the first eigenvector
        assert (np.abs(psi.T @ top[:, 0]) > 0.98).all()

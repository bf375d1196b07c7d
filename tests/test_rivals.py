"""Rivals: their eigenvalues against `eigh`, deep spectral methods on hand-made images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from bench import contest
from bench.rivals import dsm, functions
from bench.rivals.dsm import Picture
from bench.rivals.objectives import NeuralEF, Spin
from tests.conftest import Project

PIXELS = [(10, 2.0), (5, 0.1)]
M = 4  # eigenfunctions of the toy kernel


def toy_kernel(n: int = 40) -> torch.Tensor:
    """An RBF kernel of points on a line, whose leading eigenvalues are well apart."""
    x = np.linspace(0, 1, n)
    return torch.from_numpy(np.exp(-((x[:, None] - x) ** 2) / 0.08) / n).float()


@pytest.mark.parametrize("objective", [NeuralEF(), Spin(0.0), Spin(0.9)], ids=["ef", "spin", "av"])
def test_objectives_find_the_ordered_eigenvectors(objective: functions.Objective) -> None:
    kappa = toy_kernel()
    torch.manual_seed(0)
    model = nn.Linear(40, M, bias=False)  # of one-hot tokens: any function of 40 points
    group = functions.Group(torch.eye(40), kappa)
    losses = functions.train(model, [group], objective, epochs=1500, seed=0, rate=0.02)
    psi = model(group.tokens).detach()
    psi = (psi @ objective.whitening(psi)).double().numpy()
    values, vectors = np.linalg.eigh(kappa.double().numpy())
    values, vectors = values[::-1][:M], vectors[:, ::-1][:, :M]
    unit = psi / np.linalg.norm(psi, axis=0)
    rayleigh = np.einsum("nj,nk,kj->j", unit, kappa.double().numpy(), unit)
    np.testing.assert_allclose(rayleigh, values, rtol=0.02, atol=2e-3)
    assert np.abs(np.einsum("nj,nj->j", unit, vectors)).min() > 0.98  # each one, not their span
    assert losses[-1] == pytest.approx(-values.mean(), rel=0.05)


def test_a_spin_function_is_not_moved_by_later_ones() -> None:
    kappa, psi = toy_kernel(), torch.randn(40, M, generator=torch.Generator().manual_seed(0))
    changed = psi.clone()
    changed[:, -1] += 1.0
    gradients = []
    for values in (psi, changed):
        values.requires_grad_()
        Spin(0.0)(values, kappa).backward()
        gradients.append(values.grad)
    torch.testing.assert_close(gradients[0][:, :-1], gradients[1][:, :-1])


def halves(seed: int, columns: int = 6) -> Picture:
    """8 x 12 patches: one token and colour in the left columns, another in the right."""
    rng = np.random.default_rng(seed)
    left = (np.arange(96) % 12 < columns)[:, None]
    tokens = np.where(left, [1.0, 0, 0.2, 0], [0, 1.0, 0.2, 0]) + rng.normal(
        scale=0.02, size=(96, 4)
    )
    rgb = np.where(left, 0.2, 0.8) + rng.normal(scale=0.02, size=(96, 3))
    return Picture(tokens.astype(np.float32), rgb.astype(np.float32), (8, 12))


def test_eigenvectors_are_those_of_the_normalised_laplacian() -> None:
    weights = dsm.affinity(halves(0), PIXELS)
    values, vectors = dsm.eigenvectors(weights, 5)
    degrees = np.diag(weights.sum(axis=1))
    np.testing.assert_allclose((degrees - weights) @ vectors, degrees @ vectors * values, atol=1e-9)
    expected = np.sort(np.linalg.eigvals(np.linalg.inv(degrees) @ (degrees - weights)).real)[1:6]
    np.testing.assert_allclose(values, expected, atol=1e-9)
    cut = vectors[:, 0].reshape(8, 12) > 0  # the least one cuts the halves apart
    assert (cut[:, :6] == cut[0, 0]).all() and (cut[:, 6:] != cut[0, 0]).all()


def test_the_affinity_is_cosines_and_weighted_colours() -> None:
    picture = halves(1)
    plain, coloured = (dsm.affinity(picture, PIXELS, colour) for colour in (0.0, 10.0))
    unit = picture.tokens / np.linalg.norm(picture.tokens, axis=1, keepdims=True)
    np.testing.assert_allclose(plain, np.maximum(unit @ unit.T, 0), atol=1e-6)
    assert set(np.unique((coloured - plain).round(6))) == {0.0, 10.0}


def test_segments_of_all_images_fall_into_the_clusters_of_their_halves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dsm, "VECTORS", 1)  # the others hold noise alone
    monkeypatch.setattr(dsm, "SEGMENTS", 2)
    pictures = [halves(seed, 4 + seed) for seed in range(4)]
    model = dsm.fit(pictures, PIXELS, clusters=2, seed=0)
    for picture, columns in zip(pictures, range(4, 8), strict=True):
        found = model.scores(picture).argmax(axis=1).reshape(8, 12)
        assert (found[:, :columns] == found[0, 0]).all()
        assert (found[:, columns:] == found[0, -1]).all() and found[0, 0] != found[0, -1]
    first = [model.scores(picture).argmax(axis=1)[0] for picture in pictures]
    assert len(set(first)) == 1  # the same cluster in every image


def test_rivals_are_rows_of_the_table(project: Project) -> None:
    project.made("context")
    named = ["dsm:last", "neuralef:last", "spin:last"]
    sizes = ["--clusters", "4", "--seeds", "1", "--epochs", "5", "--functions", "4"]
    result = CliRunner().invoke(contest.main, [*named, *sizes], catch_exceptions=False)
    rows = json.loads(result.output.splitlines()[-1])["rows"]
    assert list(rows) == named
    for (table,) in rows.values():
        assert table["majority_iou"][1] > 50  # four flat colours: better than any one class
    again = CliRunner().invoke(contest.main, [*named, *sizes], catch_exceptions=False)
    assert again.output.splitlines()[-1] == result.output.splitlines()[-1]


def test_rivals_do_not_whiten(project: Project) -> None:
    result = CliRunner().invoke(contest.main, ["dsm:last:64"])
    assert result.exit_code and "for kmeans, spectral, ncut perhaps" in result.output

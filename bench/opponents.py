"""Opponents of the contest: K-means, spectral clustering, normalised cut, a linear probe.

Each is fitted to float32 rows of patches and gives a function from rows ``(n, c)`` to scores
``(n, K)``, higher is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import click
import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from pipeline.graph.kernel import feature_graph, normalise
from pipeline.graph.knn import nearest, top
from pipeline.head import kmeans
from stages.running.progress import track

TOLERANCE = 1e-4  # of the eigenvalues, relative: the graph's weights are float32

Scorer = Callable[[np.ndarray], np.ndarray]
Embedding = Callable[[np.ndarray], np.ndarray]  # unit rows (n, d) to eigenfunctions (n, m)


def fit_kmeans(points: np.ndarray, clusters: int, whiten: int | None, seed: int) -> Scorer:
    """Spherical K-means on rows ``(n, c)``, whitened to so many dimensions first."""
    model = kmeans.fit(points, clusters, spherical=True, whiten=whiten, seed=seed)
    return partial(kmeans.scores, model)


def fit_embedded(
    points: np.ndarray,
    clusters: int,
    whiten: int | None,
    seed: int,
    embed: Callable[[np.ndarray, int, int], tuple[np.ndarray, Embedding]],
) -> Scorer:
    """K-means on the eigenvectors of prepared rows; `spectral` or `ncut` embed them."""
    prepared = kmeans.fit(points, 1, spherical=True, whiten=whiten, seed=0)
    own, extend = embed(kmeans.prepare(prepared, points), clusters, seed)
    model = kmeans.fit(np.ascontiguousarray(own), clusters, spherical=True, whiten=None, seed=seed)

    def scores(rows: np.ndarray) -> np.ndarray:
        return kmeans.scores(model, extend(kmeans.prepare(prepared, rows)))

    return scores


class Spectrum(NamedTuple):
    """The leading eigenfunctions of the random walk on a graph of patches."""

    rows: np.ndarray  # float32 (n, d) of unit length
    functions: np.ndarray  # float32 (n, m), D^-1/2 u
    values: np.ndarray  # float32 (m,), falling from 1


def spectral(rows: np.ndarray, vectors: int, seed: int, *, k: int) -> tuple[np.ndarray, Embedding]:
    """Exact eigenvectors of the kNN graph of unit rows ``(n, d)``, and their extension."""
    leading = spectrum(rows, k, vectors, seed)
    return leading.functions, partial(extend, leading, k=k)


def spectrum(rows: np.ndarray, k: int, vectors: int, seed: int) -> Spectrum:
    """Eigenvectors u of D^-1/2 A D^-1/2, A the kNN graph (Eq. 2) of unit rows ``(n, d)``."""
    graph = feature_graph(*nearest(rows, k))
    degrees = graph.sum(axis=1)
    start = np.random.default_rng(seed).normal(size=len(rows)).astype(np.float32)
    values, u = eigsh(normalise(graph), vectors, which="LA", tol=TOLERANCE, v0=start)
    functions = u[:, ::-1] / np.sqrt(np.where(degrees == 0, 1, degrees))[:, None]
    return Spectrum(rows, functions.astype(np.float32), values[::-1].astype(np.float32))


def extend(leading: Spectrum, rows: np.ndarray, k: int) -> np.ndarray:
    """Eigenfunctions at other unit rows ``(q, d)``: float32 ``(q, m)``.

    Nystroem: f(x) = sum_j w_j f(x_j) / (value * sum_j w_j) over the k nearest rows of the sample,
    w the cosines, those below 0 clamped as in the graph.
    """
    indices, cosines = top(rows, leading.rows, k, gpu=False)
    weights = np.maximum(cosines, 0)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    ends = np.arange(len(rows) + 1) * k
    shape = len(rows), len(leading.rows)
    means = csr_array((weights.ravel(), indices.ravel(), ends), shape=shape) @ leading.functions
    return means / leading.values


def ncut(
    rows: np.ndarray, vectors: int, seed: int, *, degree: float | None
) -> tuple[np.ndarray, Embedding]:
    """Eigenvectors of ncut-pytorch: a dense RBF affinity over some rows, carried to all others.

    Args:
        degree: mean of the affinities, which sets the width of the RBF; None is the package's.
    """
    model = import_ncut()(n_eig=vectors, A_degree=degree, device="cpu")

    def embed(others: np.ndarray) -> np.ndarray:
        with _seeded(seed), torch.inference_mode():
            return model.transform(torch.from_numpy(others)).numpy()

    with _seeded(seed), torch.inference_mode():
        model.fit(torch.from_numpy(rows))
    return embed(rows), embed


def import_ncut() -> type:
    """The package's class, which is optional.

    Raises:
        click.ClickException: the package is not installed.
    """
    try:
        from ncut_pytorch import Ncut
    except ImportError as error:
        raise click.ClickException(
            f"ncut needs the package ncut-pytorch, found none ({error}): "
            'pip install -c constraints.txt -e ".[ncut]"'
        ) from error
    return Ncut


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, which the package draws from, inside the block."""
    former = np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(former)


def fit_probe(
    points: np.ndarray, targets: np.ndarray, classes: int, epochs: int, seed: int
) -> Scorer:
    """A SUPERVISED linear classifier, an upper reference.

    Cross-entropy with AdamW, batches of 4096 patches, learning rate 1e-2 by a cosine to 0.

    Args:
        points: float32 ``(n, c)``, standardised here.
        targets: int64 ``(n,)``, classes.
    """
    tokens, labels = torch.from_numpy(points), torch.from_numpy(targets)
    mean, std = tokens.mean(0), tokens.std(0) + 1e-6
    tokens = (tokens - mean) / std
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
            F.cross_entropy(probe(tokens[rows]), labels[rows]).backward()
            adam.step()
            schedule.step()

    @torch.inference_mode()
    def scores(rows: np.ndarray) -> np.ndarray:
        logits: Tensor = probe((torch.from_numpy(rows) - mean) / std)
        return logits.numpy()

    return scores

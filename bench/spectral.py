"""Exact spectral clustering of a sample of patches: whether the eigenvectors are worth reaching."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any, NamedTuple

import click
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.linalg import eigsh

from bench.scoring import Labelled, balanced, cached, enlarge, labelled, sample, score, show_scores
from cache.features import Features
from cache.labels import read_labels
from pipeline.features.whitening import unit_rows, whitening
from pipeline.graph.kernel import feature_graph, normalise
from pipeline.graph.knn import nearest, top
from pipeline.head import kmeans
from stages import params

TOLERANCE = 1e-4  # of the eigenvalues, relative: the graph's weights are float32

# Given a sample's unit rows (n, d), how many eigenvectors, and a seed: the sample's embedding
# (n, vectors), and what embeds other unit rows.
Fit = Callable[[np.ndarray, int, int], tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]]


class Choices(NamedTuple):
    """What is clustered, and how often."""

    level: str = "last"
    patches: int = 40_000
    clusters: str = "256"
    vectors: int | None = None
    whiten: int | None = None
    power: float = 0.5
    seeds: int = 3


USUAL = Choices()
OPTIONS = (
    click.option("--level", default=USUAL.level, help="Cached level, or several with commas."),
    click.option("--patches", default=USUAL.patches, show_default=True, help="In the sample."),
    click.option("--clusters", default=USUAL.clusters, show_default=True, help="K, or several."),
    click.option("--vectors", default=None, type=int, help="Eigenvectors; by default K."),
    click.option("--whiten", default=None, type=int, help="PCA-whiten to so many dimensions."),
    click.option("--power", default=USUAL.power, show_default=True, help="As of bench.kmeans."),
    click.option("--seeds", default=USUAL.seeds, show_default=True, help="Seeds 0, 1, ..."),
)


def sample_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add `OPTIONS` to a command; it gets them as ``choices``."""

    @wraps(function)
    def command(**values: Any) -> None:
        choices = Choices(**{name: values.pop(name) for name in Choices._fields})
        function(choices=choices, **values)

    for option in reversed(OPTIONS):
        command = option(command)
    return command


@click.command()
@sample_options
@click.option("--k", default=50, show_default=True, help="Neighbours of a patch in the graph.")
def main(choices: Choices, k: int) -> None:
    """Cluster the eigenvectors of the kNN graph of training patches; score the evaluation split.

    The graph is that of Eq. 2 over a random sample, without pixel graphs; its eigenvectors are
    exact. Other patches get the mean of their k nearest in the sample (Nystroem), all K the first
    K of the same eigenvectors. Prints what bench.kmeans prints, for every K.
    """
    chosen = params.load()

    def fit(
        rows: np.ndarray, vectors: int, seed: int
    ) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        found = spectrum(rows, k, vectors, seed, gpu=chosen.compute.device != "cpu")
        return found.functions, partial(extend, found, k=k)

    contest(chosen, choices, {"method": "spectral", "k": k}, fit)


class Spectrum(NamedTuple):
    """The leading eigenfunctions of the random walk on a graph of patches."""

    rows: np.ndarray  # float32 (n, d) of unit length
    functions: np.ndarray  # float32 (n, m), D^-1/2 u
    values: np.ndarray  # float32 (m,), falling from 1


def spectrum(rows: np.ndarray, k: int, vectors: int, seed: int, *, gpu: bool = False) -> Spectrum:
    """Eigenvectors u of D^-1/2 A D^-1/2, A the kNN graph (Eq. 2) of unit rows (n, d)."""
    graph = feature_graph(*nearest(rows, k, gpu=gpu))
    degrees = graph.sum(axis=1)
    start = np.random.default_rng(seed).normal(size=len(rows)).astype(np.float32)
    values, u = eigsh(normalise(graph), vectors, which="LA", tol=TOLERANCE, v0=start)
    functions = u[:, ::-1] / np.sqrt(np.where(degrees == 0, 1, degrees))[:, None]
    return Spectrum(rows, functions.astype(np.float32), values[::-1].astype(np.float32))


def extend(found: Spectrum, rows: np.ndarray, k: int) -> np.ndarray:
    """Eigenfunctions at other unit rows (q, d): float32 (q, m).

    Nystroem: f(x) = sum_j w_j f(x_j) / (value * sum_j w_j) over the k nearest rows of the sample,
    w the cosines, those below 0 clamped as in the graph.
    """
    indices, cosines = top(rows, found.rows, k, gpu=False)
    weights = np.maximum(cosines, 0)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    ends = np.arange(len(rows) + 1) * k
    shape = len(rows), len(found.rows)
    means = csr_array((weights.ravel(), indices.ravel(), ends), shape=shape) @ found.functions
    return means / found.values


def contest(chosen: params.Params, choices: Choices, facts: Mapping[str, Any], fit: Fit) -> None:
    """K-means on the unit rows of an embedding, for every K: scored over the seeds, and printed."""
    features = cached()
    classes, _ = read_labels("data/labels.csv")
    sizes = [int(k) for k in choices.clusters.split(",")]
    found: dict[int, list] = {k: [] for k in sizes}
    for seed in range(choices.seeds):
        own, items = _embedded(chosen, features, choices, fit, seed)
        for k in sizes:
            width = choices.vectors or k
            model = kmeans.fit(
                np.ascontiguousarray(own[:, :width]),
                k,
                iterations=chosen.kmeans.iterations,
                spherical=True,
                whiten=None,
                seed=seed,
            )
            found[k].append(score(items, partial(_ids, model, width), k, len(classes)))
    for k in sizes:
        show_scores({**facts, **choices._asdict(), "clusters": k}, found[k])


def _embedded(
    chosen: params.Params, features: Features, choices: Choices, fit: Fit, seed: int
) -> tuple[np.ndarray, list[Labelled]]:
    """The sample's embedding, and the evaluation split with its embedding as tokens."""
    levels = choices.level.split(",")
    channels = [features.channels(level) for level in levels]
    points = sample(features, levels, chosen.data.train, choices.patches, seed)
    prepared = _preparation(points, choices.whiten, choices.power)
    vectors = choices.vectors or max(int(k) for k in choices.clusters.split(","))
    own, embed = fit(kmeans.prepare(prepared, points), vectors, seed)
    items = [
        item._replace(tokens=embed(kmeans.prepare(prepared, balanced(item.tokens, channels))))
        for item in labelled(chosen, features, levels, chosen.data.eval)
    ]
    return own, items


def _preparation(points: np.ndarray, whiten: int | None, power: float) -> kmeans.KMeans:
    """What spherical K-means does to tokens before it compares them, as a model without centres."""
    channels = points.shape[1]
    mean, projection = np.zeros(channels, np.float32), np.zeros((channels, 0), np.float32)
    if whiten is not None:
        mean, projection = whitening(unit_rows(points), whiten, power)
    return kmeans.KMeans(np.zeros((0, whiten or channels), np.float32), mean, projection, True)


def _ids(model: kmeans.KMeans, width: int, item: Labelled) -> np.ndarray:
    """Cluster ids of one image: integers ``(height, width)``."""
    return enlarge(kmeans.scores(model, item.tokens[:, :width]), item)


if __name__ == "__main__":
    main()

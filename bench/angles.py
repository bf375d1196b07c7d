"""How close a trained head comes to the true eigenvectors of its kernel: principal angles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
import numpy as np
import torch
from scipy.linalg import orth, subspace_angles
from scipy.sparse import csr_array
from scipy.sparse.linalg import eigsh

from bench.timing import show
from cache import heads
from cache.features import Features
from cache.graphs import Graphs
from pipeline.head import kmeans
from pipeline.head.training import Batch
from pipeline.maps.predictors import Predictors, restore
from stages import params
from stages.train import load_batch, with_context

RANK = 1e-6  # singular values below this share of the largest are rounding, float32


@click.command()
@click.option("--head", "folder", default="data/head", show_default=True, help="Trained head.")
@click.option("--round", "round_", default=0, show_default=True, help="Of the graph.")
@click.option("--group", default=0, show_default=True, help="Of the round.")
@click.option("--seed", default=0, show_default=True, help="Of the random subspace.")
def main(folder: str, round_: int, group: int, seed: int) -> None:
    """Compare the span of a head's outputs with the leading eigenvectors of the kernel (Eq. 4).

    Over the patches of one group of data/graph.h5, as a training step sees it; as many
    eigenvectors as the head has clusters. Beside the head: its K-means' assignment, and a random
    subspace. `share` is the mean square of the cosines of the principal angles, dimensions that a
    span lacks counted as 0; `trace` what an orthonormal basis of it gets of the objective, at
    most the sum of the greatest eigenvalues.
    """
    chosen, features = params.load(), Features.open("data/features.zarr")
    state, centres, manifest = heads.load_head(folder)
    if manifest["features"] != features.manifest["fingerprint"]:
        raise click.ClickException(
            f"the head {folder} was trained on another feature cache than {features.path}: give "
            "the project's own head, or train again"
        )
    with Graphs("data/graph.h5") as graphs:
        graphs.check_features(features.manifest["fingerprint"])
        features = with_context(features, graphs)
        batch = load_batch(_as_trained(chosen, manifest), features, graphs, round_, group)
        tiles = graphs.group(round_, group).tiles
        own = graphs.manifest["fingerprint"] == manifest["graph"]
    inputs, models = restore(manifest, state, centres, torch.device("cpu"))
    found = spans(models, batch, features.batch([inputs.kmeans], tiles))
    clusters = manifest["head"]["clusters"]
    generator = np.random.default_rng(seed)
    found["random"] = generator.normal(size=(len(batch.tokens), clusters))
    kappa = to_scipy(batch.kappa)
    values, vectors = leading(kappa, clusters)
    rows = [{"span": name, **compare(span, kappa, vectors)} for name, span in found.items()]
    facts = {"head": folder, "trained on this graph": own, "round": round_, "group": group}
    sizes = {"patches": len(vectors), "eigenvectors": clusters}
    show("angles", {**facts, **sizes, "greatest trace": float(values.sum())}, rows)


def _as_trained(chosen: params.Params, manifest: Mapping[str, Any]) -> params.Params:
    """The parameters, with those that make a batch as they were when the head was trained."""
    head = chosen.head.model_copy(update={"levels": manifest["head"]["levels"]})
    graph = chosen.graph.model_copy(update={"alpha": manifest["alpha"]})
    return chosen.model_copy(update={"head": head, "graph": graph})


class Cosines(tuple[float, ...]):
    """Cosines of principal angles, falling."""

    def __str__(self) -> str:
        return f"{self[0]:.3f} / {self[len(self) // 2]:.3f} / {self[-1]:.3f}"


@torch.inference_mode()
def spans(models: Predictors, batch: Batch, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What spans a subspace over a group's N patches: float64 (N, dimensions) by name.

    tokens : (N, C) of the level that the K-means baseline looks at.
    """
    logits = models.head(batch.tokens.float(), batch.sizes)[1]
    assigned = kmeans.scores(models.kmeans, tokens.astype(np.float32)).argmax(axis=1)
    outputs = {
        "head, logits": logits,
        # The mean of its noisy assignments: with Gumbel noise the argmax is j with probability p_j.
        "head, softmax": torch.softmax(logits, dim=1),
        "head, argmax": torch.nn.functional.one_hot(logits.argmax(dim=1)),
        "K-means, argmax": torch.nn.functional.one_hot(torch.from_numpy(assigned)),
    }
    return {name: values.double().numpy() for name, values in outputs.items()}


def to_scipy(matrix: torch.Tensor) -> csr_array:
    """A sparse CSR tensor as float64."""
    parts = (matrix.values().double(), matrix.col_indices(), matrix.crow_indices())
    return csr_array(tuple(part.numpy() for part in parts), shape=tuple(matrix.shape))


def leading(kappa: csr_array, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Greatest eigenvalues (count,), falling, of a symmetric (N, N); eigenvectors (N, count)."""
    start = np.random.default_rng(0).normal(size=kappa.shape[0])
    values, vectors = eigsh(kappa, count, which="LA", v0=start)
    return values[::-1], vectors[:, ::-1]


def compare(span: np.ndarray, kappa: csr_array, vectors: np.ndarray) -> dict[str, Any]:
    """Compare the column span of (N, dimensions) with that of orthonormal eigenvectors (N, m)."""
    basis = orth(span, rcond=RANK)
    cosines = np.cos(subspace_angles(basis, vectors))[::-1]
    return {
        "dimension": basis.shape[1],
        "share": float(np.square(cosines).sum() / vectors.shape[1]),
        "cosines: first / middle / last": Cosines(cosines.tolist()),
        "trace": float((basis * (kappa @ basis)).sum()),
    }


if __name__ == "__main__":
    main()

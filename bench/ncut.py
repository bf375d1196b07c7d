"""Nystroem normalised cut (the package ncut-pytorch) and K-means on its eigenvectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
import numpy as np
import torch

from bench.spectral import Choices, contest, sample_options
from stages import params


@click.command()
@sample_options
@click.option("--degree", default=None, type=float, help="Mean affinity; by default the package's.")
@click.option("--device", default="cpu", type=click.Choice(["cpu", "cuda"]), show_default=True)
def main(choices: Choices, degree: float | None, device: str) -> None:
    """Cluster the eigenvectors of ncut-pytorch; score the evaluation split.

    The package takes a dense RBF affinity over some of the sample's patches and carries their
    eigenvectors to all others. Prints what bench.kmeans prints, for every K. Needs the extra
    `ncut`.
    """

    def fit(
        rows: np.ndarray, vectors: int, seed: int
    ) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        return embedding(rows, vectors, degree, seed, device)

    contest(params.load(), choices, {"method": "ncut", "degree": degree}, fit)


def embedding(
    rows: np.ndarray, vectors: int, degree: float | None, seed: int, device: str
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """The eigenvectors (n, vectors) of float32 (n, d), and what gives any rows (q, d) theirs.

    Args:
        degree: mean of the affinities, which sets the width of the RBF; None takes the median
            distance.
        seed: of the package's draws.

    Raises:
        click.ClickException: the package is not installed.
    """
    try:
        from ncut_pytorch import Ncut
    except ImportError as error:
        raise click.ClickException(
            f"bench.ncut needs the package ncut-pytorch, found none ({error}): "
            'pip install -c constraints.txt -e ".[ncut]"'
        ) from error
    model = Ncut(n_eig=vectors, A_degree=degree, device=device)

    def embed(others: np.ndarray) -> np.ndarray:
        with _seeded(seed), torch.inference_mode():
            return model.transform(torch.from_numpy(others)).numpy()

    with _seeded(seed), torch.inference_mode():
        model.fit(torch.from_numpy(rows))
    return embed(rows), embed


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


if __name__ == "__main__":
    main()
